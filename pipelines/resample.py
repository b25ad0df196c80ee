"""Antialiased crop and resize of one decoded image, as torchvision does it, on the CPU.

torch's uint8 kernel is what torchvision calls, so views equal torchvision's on the same boxes; it takes a share of
Pillow's time and releases the GIL.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.policy import CenterPolicy, Interpolation


def crop_resize(image: NDArray[np.uint8], box: tuple[int, int, int, int], size: int, mode: Interpolation) -> Tensor:
    """Cut `box` (x, y, width, height in pixels) out of `image` (H,W,3) and resize it to `size` square.

    Returns uint8 (3, size, size).
    """
    x, y, width, height = box
    return _resize(image[y : y + height, x : x + width], size, size, mode)


def center(image: NDArray[np.uint8], policy: CenterPolicy) -> Tensor:
    """The non-augmented image: torchvision's Resize and CenterCrop of `image` (H,W,3).

    Returns uint8 (3, size, size).
    """
    height, width = image.shape[:2]
    (new_width, new_height), (left, top) = center_geometry(width, height, policy)
    resized = _resize(image, new_width, new_height, policy.interpolation)
    return resized[:, top : top + policy.size, left : left + policy.size]


def center_geometry(width: int, height: int, policy: CenterPolicy) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where torchvision places Resize + CenterCrop: (width, height) after the resize and (left, top) of the crop."""
    short, long = min(width, height), max(width, height)
    new_long = int(policy.resize * long / short)
    new_width, new_height = (policy.resize, new_long) if width <= height else (new_long, policy.resize)
    return (new_width, new_height), (round((new_width - policy.size) / 2), round((new_height - policy.size) / 2))


def stored_box(box: Tensor, size: NDArray[np.int32], stored: NDArray[np.int32]) -> Tensor:
    """Boxes of original images in the pixels of smaller copies: edges scaled and rounded, at least a pixel apart.

    `box` int64 (N,4) x, y, width, height; `size` and `stored` (N,2) width and height of original and copy.
    Where both are equal, and so in all records without smaller copies, boxes stay as they are.
    """
    if np.array_equal(size, stored):
        return box
    original, copy = (torch.from_numpy(a.astype(np.int64)) for a in (size, stored))
    first = (box[:, :2] * copy / original).round().long().minimum(copy - 1)
    last = ((box[:, :2] + box[:, 2:]) * copy / original).round().long()
    return torch.cat([first, last.maximum(first + 1) - first], dim=1)


def _resize(image: NDArray[np.uint8], width: int, height: int, mode: Interpolation) -> Tensor:
    # The batch dimension goes first: torch then sees channels_last, and does not turn the pixels around and back.
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    if pixels.shape[2:] == (height, width):
        return pixels[0]
    return torch.nn.functional.interpolate(pixels, size=(height, width), mode=mode, antialias=True)[0]
