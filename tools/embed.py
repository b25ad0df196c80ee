"""Write the representations of a data set: `equimod embed RUN DATA OUT`, and over ranks under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from equimod.pipelines.progress import say
from equimod.train.command import refused_settings, run_command, wrong_usage_once
from equimod.train.config import ConfigError
from equimod.train.config.settings import Labels


@dataclass(frozen=True)
class Arguments:
    """Represent every image of a data set, in the order of the source, and write features, paths and indices.

    What is interrupted goes on where it stopped. Several GPUs: torchrun --nproc-per-node N -m equimod.tools.embed.
    Example: equimod embed runs/simclr-equimod-shapes photos features.npz
    """

    encoder: tyro.conf.Positional[str]
    """Folder of a run or of an export, or timm:NAME for weights in timm's cache."""
    data: tyro.conf.Positional[Path]
    """Records, or a folder, list or archive of images."""
    out: tyro.conf.Positional[Path]
    """File to write: .npz, or .parquet (extra parquet)."""
    labels: Labels = "auto"
    """What labels the images of a folder have, as in training."""
    checkpoint: Path | None = None
    """Folder of a checkpoint of the run; none: its newest."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of the encoder; auto: fp32 on a CPU, and on a GPU that of the training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    workers: int | None = None
    """Loader threads; none: one a core."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""

    def run() -> None:
        with wrong_usage_once():
            arguments = tyro.cli(Arguments, args=sys.argv[1:] if argv is None else list(argv))
            if arguments.out.exists():
                raise ConfigError(f"{arguments.out} is there already; remove it, or give another OUT")
            if arguments.workers is not None and arguments.workers < 1:
                raise ConfigError(f"workers={arguments.workers} is too small; give 1 or more")
        # Only now: torch takes seconds to import, and --help should not.
        from equimod.pipelines.images import open_images
        from equimod.train.distributed import first_on_each_node, process_group
        from equimod.train.embedding.files import require_form
        from equimod.train.embedding.run import embed
        from equimod.train.opened_encoder import open_encoder

        require_form(arguments.out)
        with refused_settings(), process_group(arguments.device) as dist_info:
            opened = open_encoder(arguments.encoder, arguments.checkpoint)
            usual = opened.precision if dist_info.device.type == "cuda" else "fp32"
            embed(
                opened,
                first_on_each_node(partial(open_images, arguments.data, arguments.labels), dist_info),
                arguments.out,
                source=arguments.data,
                precision=usual if arguments.precision == "auto" else arguments.precision,
                dist_info=dist_info,
                workers=arguments.workers,
            )
            if dist_info.rank == 0:
                say(f"{arguments.out}: {opened.encoder.feature_dim} features of each image of {arguments.data}")

    return run_command(run, again="run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
