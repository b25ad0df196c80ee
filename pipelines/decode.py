"""Stored images to pixels, on the CPU."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from equimod.pipelines.records.check import JPEG_START, PRINT_COLORSPACES
from equimod.pipelines.records.protocol import Records, RecordsError, Stored


def decode(stored: Stored) -> NDArray[np.uint8]:
    """RGB pixels uint8 (H,W,3) of an encoded image, or a copy of the pixels where it is stored so.

    EXIF orientation is ignored, as in torchvision. Raises ValueError or OSError where the data is damaged.
    """
    if isinstance(stored, np.ndarray):
        return stored.copy()  # torch takes no memory that cannot be written, such as a mapped file
    if bytes(stored[:2]) == JPEG_START and simplejpeg.decode_jpeg_header(stored)[2] not in PRINT_COLORSPACES:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(stored)
        return pixels
    with Image.open(io.BytesIO(stored)) as image:
        return np.asarray(image.convert("RGB")).copy()


def decode_sample(records: Records, position: int) -> NDArray[np.uint8]:
    """RGB pixels uint8 (H,W,3) of the sample at `position`.

    Raises RecordsError, naming file and sample, where it cannot be read or decoded.
    """
    try:
        pixels = decode(records.read(position))
    except (ValueError, OSError) as error:
        raise undecodable(records, position, error) from error
    width, height = records.stored[position].tolist()
    if pixels.shape != (height, width, 3):
        raise undecodable(records, position, f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels, not {width}x{height}")
    return pixels


def undecodable(records: Records, position: int, reason: object) -> RecordsError:
    """The error about the sample at `position`, which the decoder rejects."""
    return RecordsError(
        f"cannot decode {records.name(position)} (index {records.index[position]}): {reason}; "
        "convert the source again, which checks every image"
    )
