"""The check of one image file on its way into records: decoded once, kept as it is where it is a plain JPEG.

What is found is what libjpeg-turbo warns about: truncation always, overwritten bytes only where the decoder does not
fall back into step by itself.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"
PRINT_COLORSPACES = ("CMYK", "YCCK")
REENCODE_QUALITY = 95  # with full-resolution chroma: next to no loss, and only a handful of images grow


class DamagedImageError(Exception):
    """An image that cannot be read or decoded; the message is the reason alone."""


@dataclass(frozen=True)
class CheckedImage:
    jpeg: bytes  # decodes to RGB or gray
    width: int
    height: int
    reencoded: str | None  # why the bytes are not those of the file, None where they are


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of RGB pixels (H,W,3); the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _reencode(content: bytes, kind: str | None) -> CheckedImage:
    with Image.open(io.BytesIO(content)) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
        return CheckedImage(buffer.getvalue(), *image.size, kind or f"{image.format} file")


def _check(content: bytes) -> CheckedImage:
    if not content.startswith(JPEG_START):
        return _reencode(content, None)
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    if colorspace in PRINT_COLORSPACES:
        simplejpeg.decode_jpeg(content, "CMYK", strict=True)  # Pillow lets damage pass that this reports
        return _reencode(content, f"{colorspace} JPEG")
    simplejpeg.decode_jpeg(content, "GRAY" if colorspace == "Gray" else "RGB", strict=True)
    return CheckedImage(content, width, height, None)


def check_image(path: Path) -> CheckedImage:
    """Decode the image file `path`, known by its content, not its name; what is no RGB or gray JPEG is re-encoded.

    Re-encoding takes the pixels of torchvision's loader: `convert("RGB")`.
    Raises DamagedImageError.
    """
    try:
        return _check(path.read_bytes())
    except OSError as error:
        raise DamagedImageError(error.strerror or "not an image, or a truncated one") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedImageError(str(error).partition("\n")[0]) from error
