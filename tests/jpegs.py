"""JPEGs that Pillow does not write: sound ones that libjpeg warns about, any sampling of chroma, bombs."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ODD_SAMPLINGS = ("3x1,1x1,1x1", "1x3,1x1,1x1", "2x3,1x1,1x1", "4x2,1x1,1x1", "1x1,2x1,1x1", "2x1,1x2,1x1")
HARMLESS = ("bytes before the end", "bytes between headers", "scan parameters", "JFIF revision", "Adobe transform")


def picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours (H,W,3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def jpeg(pixels: NDArray[np.uint8], **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **({"quality": 90} | options))
    return file.getvalue()


def find(content: bytes, marker: int) -> tuple[int, int]:
    """Start and end of the first segment with this marker."""
    at = 2
    while True:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if content[at + 1] == marker:
            return at, end
        at = end


def harmless(content: bytes, kind: str) -> bytes:
    """The JPEG with what libjpeg warns about without any change of its pixels, one of HARMLESS."""
    if kind == "bytes before the end":
        return content[:-2] + bytes(12) + content[-2:]
    if kind == "bytes between headers":
        start, _ = find(content, 0xC4)
        return content[:start] + b"\1\2\3" + content[start:]
    if kind == "scan parameters":
        _, end = find(content, 0xDA)
        return content[: end - 2] + b"\0" + content[end - 1 :]
    start, end = find(content, 0xE0)
    if kind == "JFIF revision":
        return content[: start + 9] + b"\2" + content[start + 10 :]
    return content[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\3" + content[end:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def _packed(bits: str) -> bytes:
    padded = bits + "1" * (-len(bits) % 8)
    content = bytes(int(padded[at : at + 8], 2) for at in range(0, len(padded), 8))
    return content.replace(b"\xff", b"\xff\0")


def of_sampling(sampling: str, width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG of flat blocks of random colours, whose components are sampled as `2x1,1x1,1x1` says."""
    factors = [tuple(map(int, factor.split("x"))) for factor in sampling.split(",")]
    across, down = (max(column) for column in zip(*factors, strict=True))
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    rng, bits, last = np.random.default_rng(seed), [], [0] * len(factors)
    for _ in range(units):
        for number, (horizontal, vertical) in enumerate(factors):
            for _ in range(horizontal * vertical):
                level = int(rng.integers(-60, 60))
                difference, last[number] = level - last[number], level
                size = abs(difference).bit_length()
                low = difference if difference > 0 else difference + 2**size - 1
                bits.append(f"{size:04b}" + (f"{low:0{size}b}" if size else "") + "0")
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes((number, h * 16 + v, 0)) for number, (h, v) in enumerate(factors, 1))
    scan = bytes((len(factors), *(b for number in range(1, len(factors) + 1) for b in (number, 0)), 0, 63, 0))
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            segment(0xDB, b"\0" + bytes([16] * 64)),
            segment(0xC0, frame),
            segment(0xC4, b"\0" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))),
            segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            segment(0xDA, scan),
            _packed("".join(bits)),
            b"\xff\xd9",
        )
    )


def with_size(content: bytes, width: int, height: int, marker: int = 0xC0) -> bytes:
    """The JPEG with another size in its header, and the data as it is."""
    start, _ = find(content, marker)
    return content[: start + 5] + struct.pack(">HH", height, width) + content[start + 9 :]


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG, gray and sound, in which `scans` empty scans follow the first: a few bytes each."""
    blocks = (-(-side // 8)) ** 2
    runs, left = "", blocks
    while left:
        run = min(left, 32767)
        power = run.bit_length() - 1
        runs += f"{power:04b}" + (f"{run - 2**power:0{power}b}" if power else "")
        left -= run
    body = _packed(runs)
    content = b"\xff\xd8" + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + segment(0xDB, b"\0" + bytes([1] * 64))
    content += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    content += segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    content += segment(0xC4, b"\x10" + bytes([0, 0, 0, 15] + [0] * 12) + bytes(n << 4 for n in range(15)))
    content += segment(0xDA, b"\1\1\0" + bytes((0, 0, 0))) + _packed("0" * blocks)
    for number in range(scans):
        position, low = 1 + number // 14, 13 - number % 14
        high = 0 if low == 13 else low + 1
        content += segment(0xDA, b"\1\1\0" + bytes((position, position, high << 4 | low))) + body
    return content + b"\xff\xd9"
