"""Draw the embedded data set: `python tools/draw_shapes.py OUTPUT --split train`.

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

from equimod.pipelines.shapes import draw_dataset
from equimod.pipelines.workers import available_cores
from equimod.tools.command import image_progress, run_command


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
    with image_progress("drawing") as progress:
        draw_dataset(
            arguments.output,
            samples=arguments.samples,
            seed=arguments.seed,
            split=arguments.split,
            workers=arguments.workers,
            progress=progress,
        )
    print(f"{arguments.output}: {arguments.samples:,} images, {time.monotonic() - start:.1f} s")


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    for name, value, least in (
        ("--samples", arguments.samples, 1),
        ("--seed", arguments.seed, 0),
        ("--workers", arguments.workers, 1),
    ):
        if value < least:
            print(f"error: {name} {value} is too small; give {least} or more", file=sys.stderr)
            return 2
    return run_command(lambda: _draw(arguments), OSError, again="start over")


if __name__ == "__main__":
    sys.exit(main())
