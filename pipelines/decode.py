"""Stored images to pixels, on the CPU."""

from __future__ import annotations

import ctypes
import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from equimod.pipelines.codec import (
    JPEG_START,
    DamagedImageError,
    JpegHeader,
    most_scans,
    open_image,
    read_jpeg_header,
    sound,
)
from equimod.pipelines.kernel import library
from equimod.pipelines.records.protocol import Records, RecordsError, StoredImage

HARMLESS = {
    1: "unknown JFIF revision",
    2: "unknown Adobe colour transform",
    4: "wrong parameters of a scan",
    8: "bytes between segments",
}
"""What libjpeg warns of though the pixels are as they were meant, by the bits of native/decode.c."""
_REASON_LENGTH = 200  # JMSG_LENGTH_MAX


def decode(content: StoredImage) -> NDArray[np.uint8]:
    """RGB pixels uint8 (H,W,3) of an encoded image, or the pixels themselves where it is stored so.

    EXIF orientation is ignored, as in torchvision. Raises DamagedImageError where the data is damaged, and for an image
    beyond the limits of `codec`.
    """
    if isinstance(content, np.ndarray):
        return content
    if bytes(content[:2]) == JPEG_START:
        header = read_jpeg_header(content)
        if not header.printed:
            pixels = np.empty((header.height, header.width, 3), np.uint8)
            judge_jpeg(content, header, pixels)
            return pixels
        judge_jpeg(content, header)
    with open_image(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).copy()


def judge_jpeg(
    content: bytes | memoryview, header: JpegHeader, pixels: NDArray[np.uint8] | None = None
) -> tuple[str, ...]:
    """Decode a JPEG to its end, into `pixels` (H,W,3) where they are given; what libjpeg warned of, of HARMLESS.

    Raises DamagedImageError for damage: data that is missing, is no code, or is left over. Without LIBRARY simplejpeg
    judges, where bytes between segments are damage too, and Pillow, which finds less, those it has no sampling for.
    """
    scans = most_scans(header.width, header.height)
    if header.many_scans:
        raise DamagedImageError(f"it has more than {scans} scans")
    if LIBRARY is None:
        return _judged_by_others(content, header, pixels)
    encoded, reason = np.frombuffer(content, np.uint8), ctypes.create_string_buffer(_REASON_LENGTH)
    into = None if pixels is None else pixels.ctypes.data
    found = LIBRARY.equimod_decode_whole(
        encoded.ctypes.data, len(encoded), header.width, header.height, scans, into, reason
    )
    if found < 0:
        raise DamagedImageError(reason.value.decode("ascii", "replace"))
    return tuple(text for bit, text in HARMLESS.items() if found & bit)


_WARNING_STARTS = {"Warning: unknown JFIF": 1, "Unknown Adobe": 2, "Invalid SOS": 4}
"""The last warning of a JPEG, as libjpeg words it, that is harmless."""


def _judged_by_others(
    content: bytes | memoryview, header: JpegHeader, pixels: NDArray[np.uint8] | None
) -> tuple[str, ...]:
    into = np.empty((header.height, header.width, 3), np.uint8) if pixels is None else pixels
    with sound():
        try:
            space = "CMYK" if header.printed else "RGB"
            decoded = simplejpeg.decode_jpeg(content, space)
            if not header.printed:
                into[...] = decoded
            return ()
        except (KeyError, ValueError) as error:
            harmless = [bit for start, bit in _WARNING_STARTS.items() if str(error).startswith(start)]
            if not harmless and "subsampling" not in str(error) and not isinstance(error, KeyError):
                raise
        with open_image(io.BytesIO(content)) as image:
            into[...] = np.asarray(image.convert("RGB"))
        return tuple(HARMLESS[bit] for bit in harmless)


def decode_sample(records: Records, position: int) -> NDArray[np.uint8]:
    """RGB pixels uint8 (H,W,3) of the sample at `position`.

    Raises RecordsError, naming file and sample, where it cannot be read or decoded.
    """
    return decode_image(records, position, read_image(records, position))


def read_image(records: Records, position: int) -> StoredImage:
    """The sample at `position` as it is stored.

    Raises RecordsError, naming file and sample, where it cannot be read.
    """
    try:
        return records.read(position)
    except (ValueError, OSError) as error:
        raise undecodable(records, position, error) from error


def decode_image(records: Records, position: int, content: StoredImage) -> NDArray[np.uint8]:
    """RGB pixels uint8 (H,W,3) of `content`, which `read_image` gave for `position`.

    Raises RecordsError, naming file and sample, where it cannot be decoded.
    """
    try:
        pixels = decode(content)
    except DamagedImageError as error:
        raise undecodable(records, position, error) from error
    width, height = records.stored_size[position].tolist()
    if pixels.shape != (height, width, 3):
        raise undecodable(records, position, f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels, not {width}x{height}")
    return pixels


class RegionDecoder:
    """Decodes the region of a JPEG that its crops need, into memory that it uses again: one decoder a thread.

    By libjpeg-turbo, through native/decode.c, where installation found its header.
    """

    def __init__(self) -> None:
        self._decode = None if LIBRARY is None else LIBRARY.equimod_decode
        self._memory = np.empty(0, dtype=np.uint8)

    def __call__(
        self, content: StoredImage, size: tuple[int, int], region: tuple[int, int, int, int]
    ) -> NDArray[np.uint8] | None:
        """Pixels (H,W,3) of an image of `size` (width, height), valid until the next call.

        Inside `region`, from x0, y0 up to x1, y1, they equal those of `decode`, byte for byte; outside it they are
        undefined. Returns None for what is no sound RGB or gray JPEG of that size, which `decode_sample` decodes or
        rejects. Damage below the region goes unnoticed.
        """
        if self._decode is None or isinstance(content, np.ndarray):
            return None
        width, height = size
        if self._memory.size < 3 * width * height:
            self._memory = np.empty(3 * width * height, dtype=np.uint8)
        encoded, memory = np.frombuffer(content, dtype=np.uint8), self._memory[: 3 * width * height]
        scans = most_scans(width, height)
        if self._decode(encoded.ctypes.data, len(encoded), width, height, *region, scans, memory.ctypes.data):
            return None
        return memory.reshape(height, width, 3)


def _load() -> ctypes.CDLL | None:
    compiled = library("_decode")
    if compiled is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        compiled.equimod_decode.argtypes = [pointer, ctypes.c_int64, *[number] * 7, pointer]
        compiled.equimod_decode_whole.argtypes = [pointer, ctypes.c_int64, *[number] * 3, pointer, ctypes.c_char_p]
    return compiled


LIBRARY = _load()
"""None where it was not compiled."""

NO_LIBRARY = "decoding whole images; apt-get install libjpeg-dev g++ and pip install again, to decode what is looked at"
"""What to tell where LIBRARY is None."""


def undecodable(records: Records, position: int, reason: object) -> RecordsError:
    """The error about the sample at `position`, which the decoder rejects."""
    return RecordsError(
        f"cannot decode {records.name(position)} (index {records.index[position]}): {reason}; "
        "convert the source again, which checks every image"
    )
