"""What becomes of image files, as docs/formats.md tells: read from a folder and converted alike."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from equimod.pipelines.conversion.check import Encoding, check_image
from equimod.pipelines.decode import decode, decode_sample
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import RecordsError

ORIENTATION = 0x0112  # of EXIF and TIFF
HALF_TURN = 3
RISING = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 12, axis=0)  # 24x12 pixels, brighter to the right


def _file(pixels: NDArray[Any] | Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _png_of_16_bits(pixels: NDArray[np.uint16]) -> bytes:
    """A PNG of three channels of 16 bits (H,W,3), which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _read(name: str, content: bytes, folder: Path) -> NDArray[np.int64]:
    """The pixels (H,W,3) of a file in a folder, which are those that it is converted to, but for a level or two."""
    (folder / name).write_bytes(content)
    pixels = decode_sample(open_records(folder), 0).astype(np.int64)
    converted = decode(check_image(content, Encoding()).content).astype(np.int64)
    assert np.abs(pixels - converted).max() <= 3
    return pixels


@pytest.mark.parametrize(("form", "name"), [("JPEG", "a.jpg"), ("PNG", "a.png"), ("WEBP", "a.webp")])
def test_exif_orientation_is_ignored(form: str, name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = HALF_TURN
    pixels = _read(name, _file(RISING, form, exif=exif), tmp_path)
    assert pixels[0, 0].max() < 20 < 200 < pixels[0, -1].min()


def test_orientation_of_tiff_is_carried_out(tmp_path: Path) -> None:
    pixels = _read("a.tif", _file(RISING, "TIFF", tiffinfo={ORIENTATION: HALF_TURN}), tmp_path)
    assert pixels[0, -1].max() < 20 < 200 < pixels[0, 0].min()


@pytest.mark.parametrize(("form", "name"), [("PNG", "a.png"), ("TIFF", "a.tiff")])
def test_16_bits_of_one_channel_are_cut_off_at_255(form: str, name: str, tmp_path: Path) -> None:
    values = np.full((8, 8), 100, dtype=np.uint16)
    values[4:] = 1000
    pixels = _read(name, _file(values, form), tmp_path)
    assert (pixels[0] == 100).all()
    assert (pixels[-1] == 255).all()


def test_16_bits_of_three_channels_give_their_upper_8(tmp_path: Path) -> None:
    values = np.full((8, 8, 3), 0x8040, dtype=np.uint16)
    assert (np.abs(_read("a.png", _png_of_16_bits(values), tmp_path) - 0x80) <= 1).all()


def test_floats_are_cut_to_0_to_255(tmp_path: Path) -> None:
    values = np.full((8, 8), 0.9, dtype=np.float32)
    assert (_read("a.tif", _file(values, "TIFF"), tmp_path) <= 1).all()


def test_transparency_is_dropped(tmp_path: Path) -> None:
    values = np.full((8, 8, 4), 200, dtype=np.uint8)
    values[..., 3] = 0
    assert (_read("a.png", _file(values, "PNG"), tmp_path) == 200).all()


@pytest.mark.parametrize(("form", "name"), [("PNG", "a.png"), ("WEBP", "a.webp"), ("TIFF", "a.tif")])
def test_the_first_frame_is_taken(form: str, name: str, tmp_path: Path) -> None:
    red, *others = (Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue"))
    content = _file(red, form, save_all=True, append_images=others)
    assert np.abs(_read(name, content, tmp_path) - (255, 0, 0)).max() <= 3


def test_gray_stands_in_all_channels(tmp_path: Path) -> None:
    pixels = _read("a.JPG", _file(RISING, "JPEG"), tmp_path)
    assert (pixels == pixels[..., :1]).all()


def test_a_file_is_what_its_content_says(tmp_path: Path) -> None:
    assert (_read("a.jpg", _file(RISING, "PNG"), tmp_path)[..., 0] == RISING).all()


@pytest.mark.parametrize(
    ("form", "name"),
    [("JPEG", "a.jfif"), ("GIF", "a.gif"), ("JPEG2000", "a.jp2"), ("AVIF", "a.avif")],
)
def test_other_extensions_of_images_are_read(form: str, name: str, tmp_path: Path) -> None:
    assert np.abs(_read(name, _file(np.dstack([RISING] * 3), form), tmp_path)[..., 0] - RISING).max() < 20


def test_a_list_may_name_any_file(tmp_path: Path) -> None:
    (tmp_path / "a.x").write_bytes(_file(RISING, "GIF"))
    with pytest.raises(RecordsError, match="holds no images"):
        open_records(tmp_path)
    (tmp_path / "list.txt").write_text("a.x\n")
    assert (decode_sample(open_records(tmp_path / "list.txt"), 0)[..., 0] == RISING).all()
