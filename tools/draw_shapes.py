"""Draw the embedded data set: `equimod draw OUTPUT --split train`.

Colour images of 64x64 pixels in ten classes that differ by outline alone, one folder a class, with what was drawn
(hue, position, size, angle, texture, background) in OUTPUT/factors.csv. The same seed gives the same images.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from equimod.pipelines.cores import available_cores
from equimod.pipelines.errors import UsageError
from equimod.pipelines.progress import say
from equimod.pipelines.shapes import draw_dataset
from equimod.train.command import run_command


@dataclass(frozen=True)
class Arguments:
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder for the images; it must not exist yet."""
    samples: int = 10_000
    """Number of images, spread evenly over the classes."""
    seed: int = 0
    """Another seed draws another data set."""
    split: Literal["train", "test"] = "train"
    """The splits of a seed share no image."""
    workers: int = available_cores()
    """Processes that draw."""


def _draw(arguments: Arguments) -> None:
    start = time.monotonic()
    draw_dataset(
        arguments.output,
        samples=arguments.samples,
        seed=arguments.seed,
        split=arguments.split,
        workers=arguments.workers,
    )
    say(f"{arguments.output}: {arguments.samples:,} images, {time.monotonic() - start:.1f} s")


def main() -> int:
    """Run the command line. Returns the exit code."""

    def run() -> None:
        arguments = tyro.cli(Arguments, description=__doc__)
        for name, least in (("samples", 1), ("seed", 0), ("workers", 1)):
            if getattr(arguments, name) < least:
                raise UsageError(f"--{name} {getattr(arguments, name)} is too small; give {least} or more")
        _draw(arguments)

    return run_command(run, again="run the same command to start over")


if __name__ == "__main__":
    sys.exit(main())
