"""The image formats that are read, told apart by their first bytes; their limits; and one verdict on damage.

Pillow's own limit against decompression bombs, a setting of the whole process, is set to MAX_PIXELS here.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"
FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *("AVIF", "DIB", "JPEG2000", "MPO", "QOI"),
)
"""What Pillow is asked to open: images alone, nothing that runs another program (EPS) or that no magic number shows."""
MAX_PIXELS = 2**28
"""Pixels of the largest image that is read, by its header: 268 million, 805 MB as RGB."""
USUAL_SCANS, MAX_SCANNED = 16, 2**30
"""A JPEG may have USUAL_SCANS scans, or as many as take a second: scans times pixels are MAX_SCANNED."""
USUAL_PIXELS, PIXELS_A_BYTE = 2**24, 2**10
"""An image may have USUAL_PIXELS, or PIXELS_A_BYTE for each byte of its file: decoders take memory for all pixels of a
header, also where hardly anything comes after it. Only what is nearly blank has more."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata; damage is an error
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class DamagedImageError(Exception):
    """An image that cannot be read or decoded; the message is the reason alone, in one line."""


@dataclass(frozen=True)
class JpegHeader:
    """What the segments in front of the first scan of a JPEG say."""

    width: int
    height: int
    components: int  # 1 gray, 3 colour, 4 for print
    orderly: bool  # whether nothing stands between the segments
    many_scans: bool  # more than it may have

    @property
    def printed(self) -> bool:
        """Whether its colours are CMYK or YCCK, which libjpeg-turbo does not turn into RGB."""
        return self.components == 4


def read_jpeg_header(content: bytes | memoryview) -> JpegHeader:
    """The header of a JPEG. Raises DamagedImageError where it is cut short, and for an image beyond the limits.

    Bytes between segments are skipped, as libjpeg skips them.
    """
    content = bytes(content)
    at, orderly, frame, progressive = len(JPEG_START), True, b"", False
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(content, at)
        if marker is None:
            break
        kind, body = content[marker.end() - 1], marker.end() + 2
        orderly &= marker.start() == at
        at = marker.end() + int.from_bytes(content[body - 2 : body])
        if kind in _FRAMES:
            frame, progressive = content[body:at], kind not in _SEQUENTIAL
        if kind == _SCAN and len(frame) >= _FRAME.size and body < at <= len(content):
            _, height, width, components = _FRAME.unpack_from(frame)
            check_pixels(width, height)
            several = progressive or content[body] < components  # in this scan
            many = several and content.count(bytes((0xFF, _SCAN))) > most_scans(width, height)
            return JpegHeader(width, height, components, orderly, many)
    raise DamagedImageError("a JPEG that ends within its header")


_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a segment
_MOST_SEGMENTS = 2**14
_SCAN = 0xDA
_FRAME = struct.Struct(">BHHB")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the other three are tables, or reserved
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}


def most_scans(width: int, height: int) -> int:
    """How many scans a JPEG of this size may have."""
    return max(USUAL_SCANS, MAX_SCANNED // max(1, width * height))


def check_pixels(width: int, height: int) -> None:
    """Raises DamagedImageError for an image of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise DamagedImageError(f"it has {width}x{height} pixels, more than the {MAX_PIXELS:,} that are read")


@contextmanager
def open_image(file: BinaryIO) -> Iterator[Image.Image]:
    """An image file of one of FORMATS by Pillow, whose header alone is read.

    Raises DamagedImageError, inside the block too, for whatever the decoder raises, and beyond MAX_PIXELS.
    """
    with sound():
        count = file.seek(0, io.SEEK_END)
        file.seek(0)
        _check_bytes(_webp_size(file), count)
        try:
            image = Image.open(file, formats=_installed_formats())
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DamagedImageError(f"it has more than the {MAX_PIXELS:,} pixels that are read") from error
        except UnidentifiedImageError as error:
            raise DamagedImageError(_unidentified(file)) from error
        with image:
            check_pixels(*image.size)
            _check_bytes(image.size, count)
            yield image


def _check_bytes(size: tuple[int, int], count: int) -> None:
    """Raises DamagedImageError for an image of far more pixels than its `count` bytes can hold."""
    width, height = size
    if width * height > max(USUAL_PIXELS, PIXELS_A_BYTE * count):
        raise DamagedImageError(f"its {count:,} bytes are too few for {width}x{height} pixels")


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of a WebP, for which Pillow takes memory when it opens one; (0, 0) of any other file."""
    head = file.read(_WEBP_HEAD)
    file.seek(0)
    if len(head) < _WEBP_HEAD or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    if head[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if head[12:16] == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")


_WEBP_HEAD = 30  # bytes up to the end of the size, in each of its forms
_STARTS = (JPEG_START, PNG_START, b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")


def _unidentified(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(max(map(len, _STARTS)))
    if not start:
        return "it is empty"
    return "its header is damaged" if start.startswith(_STARTS) else "it is no image, or of a format that is not read"


@cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def sound() -> Iterator[None]:
    """Whatever a decoder raises inside, as DamagedImageError: foreign ones raise exceptions of every kind."""
    try:
        yield
    except DamagedImageError:
        raise
    except MemoryError as error:
        raise DamagedImageError("there is not enough memory to decode it") from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise DamagedImageError(reason or type(error).__name__) from error


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of RGB pixels (H,W,3); the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
