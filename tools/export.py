"""Write the encoder of a run for other programs: `equimod export RUN --to torchvision|timm|hub|onnx|torchscript`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from equimod.train.command import run_command, wrong_usage_once


@dataclass(frozen=True)
class Arguments:
    """Write the encoder of a run into a folder of its own: weights, preprocessing, and a model card that says how each
    program loads them. Example: equimod export runs/simclr-equimod-shapes --to hub onnx
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of the run."""
    to: tuple[Literal["torchvision", "timm", "hub", "onnx", "torchscript"], ...] = ("hub",)
    """Programs that are to load it, one or several."""
    output: Path | None = None
    """Folder to write; none: RUN_DIR/export. Its name is the model's in the card."""
    checkpoint: Path | None = None
    """Folder of a checkpoint; none: the newest of the run."""
    licence: Annotated[str | None, tyro.conf.arg(aliases=["--license"])] = None
    """Licence of the weights, such as cc-by-nc-4.0, for the card."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""

    def run() -> None:
        with wrong_usage_once():
            arguments = tyro.cli(Arguments, args=sys.argv[1:] if argv is None else list(argv))
        # Only now: torch takes seconds to import, and --help should not.
        from equimod.train.export.folder import export

        folder = arguments.output or arguments.run_dir / "export"
        export(arguments.run_dir, folder, arguments.to, checkpoint=arguments.checkpoint, licence=arguments.licence)
        print(f"exported to {folder}; its README.md says how to load it")

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
