"""The image formats that records hold, told apart by their first bytes, and the one that is written without loss."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"
PRINT_COLORSPACES = ("CMYK", "YCCK")
"""Colour spaces of JPEGs that libjpeg-turbo does not turn into RGB."""


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of RGB pixels (H,W,3); the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
