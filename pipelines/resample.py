"""Antialiased crop and resize of decoded images, as torchvision does it, on the CPU.

The kernel of kernel.py gives torch's own bytes in less time (.4 of it with AVX-512, .8 with AVX2); elsewhere torch's
uint8 kernel serves, which is what torchvision calls. So views equal torchvision's on the same boxes. Both release the
GIL.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.kernel import CUT, load
from equimod.pipelines.policy import CenterPolicy, Interpolation

KERNEL = load()
"""None where torch is as fast, or all there is."""

NO_KERNEL = "resizing with torch; on processors with AVX2 a kernel is faster, which installation compiles with g++"
"""What to tell where KERNEL is None."""


def crop_cuts(boxes: NDArray[np.int64], size: int, mode: Interpolation) -> NDArray[np.void]:
    """Cuts (N,) of `boxes` (N,4), x, y, width, height in pixels, resized to `size` square."""
    cuts = np.zeros(len(boxes), CUT)
    for name, values in zip(("x", "y", "width", "height"), boxes.T, strict=True):
        cuts[name] = values
    for name in ("full_width", "full_height", "size"):
        cuts[name] = size
    cuts["cubic"] = mode == "bicubic"
    return cuts


def center_cuts(sizes: NDArray[np.int32], policy: CenterPolicy) -> NDArray[np.void]:
    """Cuts (N,) of the non-augmented images, torchvision's Resize and CenterCrop, of images of `sizes` (N,2)."""
    cuts = np.zeros(len(sizes), CUT)
    cuts["width"], cuts["height"] = sizes.T
    for cut, (width, height) in zip(cuts, sizes.tolist(), strict=True):
        (cut["full_width"], cut["full_height"]), (cut["left"], cut["top"]) = center_geometry(width, height, policy)
    cuts["size"], cuts["cubic"] = policy.size, policy.interpolation == "bicubic"
    return cuts


def resample(image: NDArray[np.uint8], cuts: NDArray[np.void], targets: list[NDArray[np.uint8]]) -> None:
    """Write every one of `cuts` (K,) out of `image` (H,W,3), whose pixels lie side by side, into its target.

    `targets`: K contiguous (size,size,3). ValueError for a cut that does not lie in the image and for other shapes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.strides[1:] != (3, 1):
        raise ValueError(f"image: uint8 (H,W,3) with pixels side by side is wanted, not {image.dtype} {image.shape}")
    for cut, target in zip(cuts, targets, strict=True):
        size = cut["size"]
        if target.shape != (size, size, 3) or target.dtype != np.uint8 or not target.flags.c_contiguous:
            raise ValueError(f"target: contiguous uint8 ({size},{size},3) is wanted, not {target.dtype} {target.shape}")
    if KERNEL is not None:
        KERNEL.resample(image, cuts, targets)
        return
    for cut, target in zip(cuts, targets, strict=True):
        target[:] = _with_torch(image, cut)


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


def _with_torch(image: NDArray[np.uint8], cut: np.void) -> NDArray[np.uint8]:
    _, x, y, width, height, full_width, full_height, left, top, size, cubic = cut.tolist()
    across, down = image.shape[1] - x - width, image.shape[0] - y - height
    kept = (full_width - left - size, full_height - top - size)
    if min(x, y, width - 1, height - 1, left, top, across, down, *kept) < 0:
        raise ValueError(f"cut {cut} does not lie in an image of {image.shape[1]}x{image.shape[0]} pixels")
    # The batch dimension goes first: torch then sees channels_last, and does not turn the pixels around and back.
    pixels = torch.from_numpy(image[y : y + height, x : x + width])[None].permute(0, 3, 1, 2)
    if (height, width) != (full_height, full_width):
        mode = "bicubic" if cubic else "bilinear"
        pixels = torch.nn.functional.interpolate(pixels, size=(full_height, full_width), mode=mode, antialias=True)
    resized: NDArray[np.uint8] = pixels[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()
    return resized
