"""The check of one image file on its way into records: decoded once, kept as it is where it is a plain JPEG.

It finds what libjpeg-turbo warns about: truncation always, overwritten bytes only where the decoder does not
resynchronise after them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import simplejpeg
from PIL import Image

from equimod.pipelines.codec import JPEG_START, PRINT_COLORSPACES

REENCODE_QUALITY = 95  # with full-resolution chroma: next to no loss, and only a handful of images grow


class DamagedImageError(Exception):
    """An image that cannot be read or decoded; the message is the reason alone."""


@dataclass(frozen=True)
class CheckedImage:
    content: bytes  # a JPEG that decodes to RGB or gray, or a PNG
    size: tuple[int, int]  # width and height of the original in pixels
    stored_size: tuple[int, int]  # width and height of `content`
    reencoded: str | None  # why the bytes are not those of the source, None where they are


@dataclass(frozen=True)
class Shrink:
    """How images are reduced whose longer side has more than `max_side` pixels."""

    max_side: int
    quality: int  # of JPEG

    def apply(self, image: CheckedImage) -> CheckedImage:
        """A smaller copy, JPEG like its original or RGB; as it is where it is small enough."""
        longest = max(image.stored_size)
        if longest <= self.max_side:
            return image
        width, height = (max(1, round(side * self.max_side / longest)) for side in image.stored_size)
        with Image.open(io.BytesIO(image.content)) as full:
            copy = (full if full.mode == "L" else full.convert("RGB")).resize((width, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        copy.save(buffer, "JPEG", quality=self.quality)
        return CheckedImage(buffer.getvalue(), image.size, (width, height), image.reencoded)


def _reencode(content: bytes, kind: str | None) -> CheckedImage:
    with Image.open(io.BytesIO(content)) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
        return CheckedImage(buffer.getvalue(), image.size, image.size, kind or f"{image.format} file")


def _check(content: bytes) -> CheckedImage:
    if not content.startswith(JPEG_START):
        return _reencode(content, None)
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    if colorspace in PRINT_COLORSPACES:
        simplejpeg.decode_jpeg(content, "CMYK", strict=True)  # Pillow lets damage pass that this reports
        return _reencode(content, f"{colorspace} JPEG")
    simplejpeg.decode_jpeg(content, "GRAY" if colorspace == "Gray" else "RGB", strict=True)
    return CheckedImage(content, (width, height), (width, height), None)


def check_image(content: bytes) -> CheckedImage:
    """Decode an image file, known by its content, not its name; what is no RGB or gray JPEG is re-encoded.

    Re-encoding takes the pixels of torchvision's loader: `convert("RGB")`.
    Raises DamagedImageError.
    """
    try:
        return _check(content)
    except OSError as error:
        raise DamagedImageError("not an image, or a truncated one") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedImageError(str(error).partition("\n")[0]) from error
