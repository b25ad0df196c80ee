"""Images that tell from their pixels where a view lies, and what pipelines make of them and of smaller copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conversions import converted
from PIL import Image
from torch import Tensor

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion.check import Shrink
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records

MAX_SIDE = 300
POLICY = POLICIES["simclr_imagenet"]


def waves(folder: Path, count: int = 12) -> Path:
    """Gray waves over 400 to 1200 pixels a side, 40 to 80 pixels long: a pixel further on, ten levels differ."""
    rng, tree = np.random.default_rng(0), folder / "tree"
    (tree / "class").mkdir(parents=True)
    for number in range(count):
        width, height = (int(side) for side in rng.integers(400, 1200, 2))
        across, down = (np.sin(2 * np.pi * np.arange(n) / rng.uniform(40, 80)) for n in (width, height))
        pixels = np.rint(128 + 60 * (across + down[:, None])).astype(np.uint8)
        Image.fromarray(pixels).save(tree / "class" / f"{number:02}.png")
    return tree


def full_and_smaller(folder: Path) -> tuple[Path, Path]:
    """`waves` as .beton in full size, and in copies of MAX_SIDE pixels."""
    tree = waves(folder)
    full, small = folder / "full.beton", folder / "small.beton"
    converted(tree, full, raw=False)
    converted(tree, small, shrink=Shrink(MAX_SIDE, 95))
    return full, small


def images(records: Path, backend: str) -> tuple[Tensor, ...]:
    """x and the views of all samples, uint8 (N,3,S,S) each."""
    opened = open_records(records)
    pipeline = build_pipeline(opened, POLICY, backend=backend, batch_size=len(opened), seed=1, workers=1)
    (batch,) = pipeline.decoded(0)
    return batch.images


def distance(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> list[float]:
    """The mean distance of each of x and the views, in levels of 255."""
    return [(a.float() - b.float()).abs().mean().item() for a, b in zip(some, others, strict=True)]
