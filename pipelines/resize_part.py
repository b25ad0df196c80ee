"""Antialiased resize of a box with fractions out of an image, with NumPy: the bytes of the compiled kernel, without it.

torch resizes whole images only. The weights, their 16 bits, the order of the axes and the bytes between them are those
of native/resample.c; see there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class _Weights:
    """Output o of an axis is the sum over taps t of weight[t, o] * input[low[o] + t], by 2**precision."""

    low: NDArray[np.int64]  # (n,)
    weight: NDArray[np.int32]  # (taps, n)
    precision: int


def resize_part(
    image: NDArray[np.uint8],
    box: tuple[float, float, float, float],
    full: tuple[int, int],
    kept: tuple[int, int, int],
    cubic: bool,
) -> NDArray[np.uint8]:
    """The square `kept` (left, top, size), uint8 (size,size,3), of `box` resized to `full` (width, height).

    `box` is x, y, width, height in pixels of `image` (H,W,3), and lies in it.
    """
    (x, y, width, height), (left, top, size) = box, kept
    columns = _weigh(image.shape[1], x, width, full[0], cubic)
    rows = _weigh(image.shape[0], y, height, full[1], cubic)
    across = _along_rows(image, columns, slice(left, left + size))
    return _along_rows(across.swapaxes(0, 1), rows, slice(top, top + size)).swapaxes(0, 1)


def _along_rows(pixels: NDArray[np.uint8], weights: _Weights, outputs: slice) -> NDArray[np.uint8]:
    low, last = weights.low[outputs], pixels.shape[1] - 1
    total = np.full((len(pixels), len(low), 3), 1 << (weights.precision - 1), dtype=np.int32)
    for tap, weight in enumerate(weights.weight[:, outputs]):
        total += weight[:, None] * pixels[:, np.minimum(low + tap, last)]
    return (total >> weights.precision).clip(0, 255).astype(np.uint8)


def _weigh(length: int, start: float, extent: float, full: int, cubic: bool) -> _Weights:
    """Of an axis of `length` pixels, of which `extent` from `start` on become `full`."""
    scale = extent / full
    stretch = max(scale, 1.0)
    support = (2 if cubic else 1) * stretch
    center = start + scale * (np.arange(full) + 0.5)
    low = np.maximum((center - support + 0.5).astype(np.int64), 0)
    high = np.minimum((center + support + 0.5).astype(np.int64), length)
    tap = np.arange(2 * math.ceil(support) + 1)[:, None]
    x = np.abs((tap + low - center + 0.5) * (1 / stretch))
    if cubic:
        inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    else:
        weight = np.where(x < 1, 1 - x, 0)
    weight = np.where(tap < high - low, weight, 0)
    weight /= np.add.accumulate(weight)[-1]  # tap after tap: another order may round otherwise
    largest, precision = float(weight.max()), 0
    while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    fixed = weight * (1 << precision)
    return _Weights(low, np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int32), precision)
