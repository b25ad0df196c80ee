"""The compiled kernel of resize.py (native/resample*.c), where installation found a compiler.

A plain shared library, called through ctypes, which releases the GIL.
"""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INSTRUCTION_SETS = {"plain": 1, "avx2": 2, "avx512": 4, "neon": 8}
"""The bit of each in the kernel's answer to which of them it has on this processor."""

_BOX = ("x", "y", "width", "height")
_KEPT = ("full_width", "full_height", "left", "top", "size", "cubic")
CropSpec = np.dtype(
    [("out", np.uintp), *((name, np.float64) for name in _BOX), *((name, np.int32) for name in _KEPT)], align=True
)
"""A crop of an image and its resize: `struct CropSpec` of native/resample.c.

The box x, y, width, height is resized to full_width x full_height, of which the square of `size` at left, top is kept.
A box of whole pixels is cropped first, as torchvision does it, so that no pixel beside it counts. One that has a
fraction is Pillow's `Image.resize(size, resample, box)`: the filter reaches over its edges, but not the image's.
`out` is filled in by `resize.CropResizer`.
"""


class Kernel:
    """The library, with the best instruction set of this processor, or the one that is named.

    ValueError for one that this processor does not have.
    """

    def __init__(self, library: ctypes.CDLL, instruction_set: str | None = None) -> None:
        here = int(library.equimod_instruction_sets())
        self.instruction_sets = tuple(name for name, bit in INSTRUCTION_SETS.items() if here & bit)
        if instruction_set not in (None, *self.instruction_sets):
            raise ValueError(f"instruction_set={instruction_set!r} is not here; choose {self.instruction_sets}")
        self._bit = INSTRUCTION_SETS[instruction_set or self.instruction_sets[-1]]
        self._resample = library.equimod_resample
        self._resample.restype = ctypes.c_int64
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._resample.argtypes = [pointer, number, number, number, pointer, number, ctypes.c_int32]

    def resample(self, image: NDArray[np.uint8], specs: NDArray[np.void]) -> None:
        """Write the crops `specs` (K,), contiguous, of `image` (H,W,3) to the address in its `out`.

        ValueError for a crop that does not lie in the image. Nothing else is checked; see `resize.CropResizer`.
        """
        height, width, _ = image.shape
        failed = self._resample(
            image.ctypes.data, width, height, image.strides[0], specs.ctypes.data, len(specs), self._bit
        )
        if failed > 0:
            raise ValueError(f"crop {specs[failed - 1]} does not lie in an image of {width}x{height} pixels")
        if failed:
            raise MemoryError(f"no memory to resize an image of {width}x{height} pixels")


def library(name: str = "_resample") -> ctypes.CDLL | None:
    """A compiled library of this folder; None where it was not compiled."""
    path = Path(__file__).with_name(name + EXTENSION_SUFFIXES[0])
    return ctypes.CDLL(str(path)) if path.exists() else None


def load() -> Kernel | None:
    """The kernel; None where it was not compiled."""
    compiled = library()
    return Kernel(compiled) if compiled else None
