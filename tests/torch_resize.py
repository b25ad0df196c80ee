"""What the compiled resize kernel is held against: torch's own, on images that are hard for both."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Box = tuple[int, int, int, int]


def with_torch(image: NDArray[np.uint8], box: Box, size: int, mode: str) -> NDArray[np.uint8]:
    """`box`, x, y, width, height, of `image` (H,W,3), resized to (size,size,3)."""
    x, y, width, height = box
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)[:, :, y : y + height, x : x + width]
    resized = torch.nn.functional.interpolate(pixels, size=(size, size), mode=mode, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
    """Any box of an image of width x height pixels."""
    w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
    return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h


def random_part(rng: np.random.Generator, width: int, height: int) -> tuple[float, float, float, float]:
    """Any box with fractions of an image of width x height pixels."""
    (x0, y0), (x1, y1) = np.sort(rng.random((2, 2)) * [width, height], axis=0).tolist()
    return x0, y0, x1 - x0, y1 - y0


def random_image(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Noise, black and white, which overshoots most, or an edge; in rows that are farther apart than they are long."""
    kind, padding = rng.integers(3), int(rng.integers(0, 40))
    rows = rng.integers(0, 256, (height, width + padding, 3), dtype=np.uint8)
    if kind == 1:
        rows = np.where(rows > 127, 255, 0).astype(np.uint8)
    elif kind == 2:
        rows[:] = 0
        rows[:, width // 2 :] = 255
    return rows[:, :width]
