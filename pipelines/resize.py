"""Antialiased crop and resize of decoded images, as torchvision does it, on the CPU.

The kernel of kernel.py gives torch's own bytes in less time (a third to a half of it where torch has code for the
processor, plain C half of it where it has not; not measured on ARM); without a compiler torch's uint8 kernel serves,
which is what torchvision calls. So views equal torchvision's on the same boxes. Both release the GIL. Boxes with
fractions, which torch does not know, are then resized with NumPy, to the kernel's bytes again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from equimod.pipelines.geometry import center_geometry
from equimod.pipelines.kernel import CropSpec, Kernel, load
from equimod.pipelines.policy import CenterPolicy, Interpolation
from equimod.pipelines.resize_part import resize_part

KERNEL = load()
"""None where it was not compiled."""

NO_KERNEL = "resizing with torch, which is slower; apt-get install g++ and pip install again, which compiles the kernel"
"""What to tell where KERNEL is None."""


def crop_specs(boxes: NDArray[np.float64], size: int, mode: Interpolation) -> NDArray[np.void]:
    """CropSpecs (N,) of `boxes` (N,4), x, y, width, height in pixels, whole or not, resized to `size` square."""
    specs = np.zeros(len(boxes), CropSpec)
    for name, values in zip(("x", "y", "width", "height"), boxes.T, strict=True):
        specs[name] = values
    for name in ("full_width", "full_height", "size"):
        specs[name] = size
    specs["cubic"] = mode == "bicubic"
    return specs


def center_crop_specs(
    sizes: NDArray[np.int32], stored_sizes: NDArray[np.int32], policy: CenterPolicy
) -> NDArray[np.void]:
    """CropSpecs (N,) of the non-augmented images, torchvision's Resize and CenterCrop of originals of `sizes` (N,2).

    A smaller copy, whose size in `stored_sizes` (N,2) differs, is resized whole to the size that the original would be
    resized to, so that its crop shows exactly what that of the original shows.
    """
    specs = np.zeros(len(sizes), CropSpec)
    specs["width"], specs["height"] = stored_sizes.T
    for spec, (width, height) in zip(specs, sizes.tolist(), strict=True):
        (spec["full_width"], spec["full_height"]), (spec["left"], spec["top"]) = center_geometry(width, height, policy)
    specs["size"], specs["cubic"] = policy.size, policy.interpolation == "bicubic"
    return specs


def regions_of_interest(specs: NDArray[np.void], stored_sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    """The region of each image that its crops `specs` (N,K) read: int64 (N,4), from x0, y0 up to x1, y1.

    `stored_sizes` (N,2) are the width and height of the images.
    """
    whole = np.logical_and.reduce([specs[name] % 1 == 0 for name in ("x", "y", "width", "height")])
    edges = []
    axes = (("x", "width", "full_width", "left"), ("y", "height", "full_height", "top"))
    for (start, length, full, first), ends in zip(axes, stored_sizes.T, strict=True):
        scale = specs[length] / specs[full]
        reach = np.where(specs["cubic"], 2, 1) * np.maximum(scale, 1) + 1  # of the filter, and a pixel for rounding
        low = np.floor(specs[start] + scale * specs[first] - reach)
        high = np.ceil(specs[start] + scale * (specs[first] + specs["size"]) + reach)
        low = np.maximum(low, np.where(whole, specs[start], 0))
        high = np.minimum(high, np.where(whole, specs[start] + specs[length], ends[:, None]))
        edges.append((low.min(axis=1), high.max(axis=1)))
    (x0, x1), (y0, y1) = edges
    return np.stack([x0, y0, x1, y1], axis=1).astype(np.int64)


class CropResizer:
    """Crops and resizes N images by `specs` (N,K), an image at a time, into K `targets`: uint8 (N,size,size,3).

    By `kernel`, or torch where there is none. Images may come in any order, and several at once. ValueError for
    targets of another shape, type or layout.
    """

    def __init__(
        self, specs: NDArray[np.void], targets: Sequence[NDArray[np.uint8]], kernel: Kernel | None = KERNEL
    ) -> None:
        self._specs, self._targets, self._kernel = np.ascontiguousarray(specs).copy(), targets, kernel
        for column, target in zip(self._specs.T, targets, strict=True):
            size = int(column["size"].max(initial=0))
            wanted = (len(column), size, size, 3)
            if target.shape != wanted or target.dtype != np.uint8 or not target.flags.c_contiguous:
                raise ValueError(f"target: contiguous uint8 {wanted} is wanted, not {target.dtype} {target.shape}")
            column["out"] = target.ctypes.data + np.arange(len(column), dtype=np.uintp) * target.strides[0]

    def __call__(self, row: int, image: NDArray[np.uint8]) -> None:
        """Fill `row` of the targets from `image` (H,W,3), whose pixels lie side by side.

        ValueError for another shape, and for a crop that does not lie in the image.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.strides[1:] != (3, 1):
            raise ValueError(f"image: uint8 (H,W,3) with pixels side by side is wanted: {image.dtype} {image.shape}")
        if self._kernel is not None:
            self._kernel.resample(image, self._specs[row])
            return
        for spec, target in zip(self._specs[row], self._targets, strict=True):
            target[row] = _without_kernel(image, spec)


def _without_kernel(image: NDArray[np.uint8], spec: np.void) -> NDArray[np.uint8]:
    _, x, y, width, height, full_width, full_height, left, top, size, cubic = spec.tolist()
    across, down = image.shape[1] - x - width, image.shape[0] - y - height
    beside = (x, y, left, top, across, down, full_width - left - size, full_height - top - size)
    if not (all(pixels >= 0 for pixels in beside) and min(width, height) > 0):
        raise ValueError(f"crop {spec} does not lie in an image of {image.shape[1]}x{image.shape[0]} pixels")
    box, full = (x, y, width, height), (full_width, full_height)
    if any(number % 1 for number in box):
        return resize_part(image, box, full, (left, top, size), bool(cubic))
    x, y, width, height = map(int, box)
    resized = _with_torch(image[y : y + height, x : x + width], full, "bicubic" if cubic else "bilinear")
    return resized[top : top + size, left : left + size]


def _with_torch(box: NDArray[np.uint8], full: tuple[int, int], mode: Interpolation) -> NDArray[np.uint8]:
    box = box if box.flags.writeable else box.copy()  # torch takes no memory that is read-only
    # The batch dimension goes first: torch then sees channels_last, and does not turn the pixels around and back.
    pixels = torch.from_numpy(box)[None].permute(0, 3, 1, 2)
    if box.shape[1::-1] != full:
        pixels = torch.nn.functional.interpolate(pixels, size=full[::-1], mode=mode, antialias=True)
    resized: NDArray[np.uint8] = pixels[0].permute(1, 2, 0).numpy()
    return resized
