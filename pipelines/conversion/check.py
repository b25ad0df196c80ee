"""The check of one image file on its way into records: decoded once, kept as it is where it is a plain JPEG.

It finds what libjpeg-turbo warns about: truncation always, overwritten bytes only where the decoder does not
resynchronise after them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from equimod.pipelines.codec import JPEG_START, DamagedImageError, open_image, read_jpeg_header
from equimod.pipelines.decode import judge_jpeg

__all__ = ["CheckedImage", "DamagedImageError", "Encoding", "Shrink", "check_image", "reduced"]

REENCODE_QUALITY = 95  # with full-resolution chroma: next to no loss, and only a handful of images grow
LONGEST_JPEG = 65_500  # pixels of a side, of libjpeg
CLIPPED = "values clipped to 0 to 255"
"""In the reason why an image of more than 8 bits was re-encoded: what `convert("RGB")` does to it."""
_DRAFT = 2  # times the pixels of a smaller copy: what a JPEG may be decoded at in its place without a visible change


@dataclass(frozen=True)
class CheckedImage:
    content: bytes  # a JPEG that decodes to RGB or gray, or a PNG
    size: tuple[int, int]  # width and height of the original in pixels
    stored_size: tuple[int, int]  # width and height of `content`
    reencoded: str | None = None  # why the bytes are not those of the source, None where they are
    harmless: tuple[str, ...] = ()  # what libjpeg warned of, see `judge_jpeg`


@dataclass(frozen=True)
class Shrink:
    """How images are reduced whose longer side has more than `max_side` pixels."""

    max_side: int
    quality: int | None  # of JPEG; None where copies are encoded without loss

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the copy of an image of `size`, which are its own where it is small enough."""
        longest = max(size)
        if longest <= self.max_side:
            return size
        width, height = (max(1, round(side * self.max_side / longest)) for side in size)
        return width, height


@dataclass(frozen=True)
class Encoding:
    """What becomes of images that are not stored as they are."""

    shrink: Shrink | None = None
    lossless: bool = False  # PNG in place of JPEG

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that an image of `size` is stored with."""
        return self.shrink.size(size) if self.shrink else size


def check_image(content: bytes, encoding: Encoding) -> CheckedImage:
    """Decode an image file, known by its content. What is no RGB or gray JPEG, or too large, is encoded anew:
    the pixels of torchvision's loader, `convert("RGB")`. Raises DamagedImageError.
    """
    reencoded: str | None = None
    harmless: tuple[str, ...] = ()
    if content.startswith(JPEG_START):
        header = read_jpeg_header(content)
        harmless, size = judge_jpeg(content, header), (header.width, header.height)
        if not header.printed and encoding.size(size) == size:
            return CheckedImage(content, size, size, harmless=harmless)
        reencoded = "CMYK JPEG" if header.printed else None
    with open_image(io.BytesIO(content)) as image:
        if not content.startswith(JPEG_START):
            clipped = image.mode == "F" or image.mode.startswith("I")
            reencoded = f"{image.format} file" + f" ({CLIPPED})" * clipped
        return _encoded(image, encoding, reencoded, harmless)


def reduced(content: bytes, size: tuple[int, int], stored_size: tuple[int, int], encoding: Encoding) -> CheckedImage:
    """An image that was checked before, as it is where it is small enough; `size` is that of its original.

    Raises DamagedImageError.
    """
    if encoding.size(stored_size) == stored_size:
        return CheckedImage(content, size, stored_size)
    with open_image(io.BytesIO(content)) as image:
        copy = _encoded(image, encoding, None, ())
    return CheckedImage(copy.content, size, copy.stored_size)


def _encoded(image: Image.Image, encoding: Encoding, reencoded: str | None, harmless: tuple[str, ...]) -> CheckedImage:
    size, stored = image.size, encoding.size(image.size)
    if not encoding.lossless and max(stored) > LONGEST_JPEG:
        raise DamagedImageError(
            f"a JPEG cannot hold its {stored[0]}x{stored[1]} pixels; give --max-side {LONGEST_JPEG} or less"
        )
    if stored != size:
        image.draft(None, (_DRAFT * stored[0], _DRAFT * stored[1]))
    copy = image if image.mode == "L" else image.convert("RGB")
    if stored != copy.size:
        copy = copy.resize(stored, Image.Resampling.LANCZOS)
    copy = copy.convert("RGB") if reencoded else copy
    buffer = io.BytesIO()
    if encoding.lossless:
        copy.save(buffer, "PNG", compress_level=1)
    elif stored != size:
        assert encoding.shrink
        copy.save(buffer, "JPEG", quality=encoding.shrink.quality)
    else:
        copy.save(buffer, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
    return CheckedImage(buffer.getvalue(), size, stored, reencoded, harmless)
