"""One verdict on an image, in the converter and wherever one is read: what is sound is kept, what is not is named."""

from __future__ import annotations

import io
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from commands import call
from jpegs import HARMLESS, ODD_SAMPLINGS, harmless, jpeg, many_scans, of_sampling, picture, with_size
from PIL import Image, features

from equimod.pipelines import codec, decode
from equimod.pipelines.codec import PIXELS_A_BYTE, USUAL_PIXELS, DamagedImageError, read_jpeg_header
from equimod.pipelines.conversion.check import Encoding, Shrink, check_image
from equimod.pipelines.conversion.convert import DamagedImagesError, convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.decode import RegionDecoder
from equimod.pipelines.records import RecordsError, open_records
from equimod.tools import convert_imagenet

compiled = pytest.mark.skipif(decode.LIBRARY is None, reason="needs libjpeg-dev and g++")


def _pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _sound(kind: str) -> bytes:
    return of_sampling(kind, 101, 67) if kind in ODD_SAMPLINGS else harmless(jpeg(picture(96, 64)), kind)


@compiled
@pytest.mark.parametrize("kind", [*HARMLESS, *ODD_SAMPLINGS])
def test_what_is_sound_is_kept_and_has_pillows_pixels_everywhere(kind: str) -> None:
    content = _sound(kind)
    checked = check_image(content, Encoding())
    assert checked.content == content
    assert len(checked.harmless) == (kind in HARMLESS)
    pixels = decode.decode(content)
    assert np.abs(pixels - _pillow(content)).max() <= 2
    height, width, _ = pixels.shape
    rng, region_decoder = np.random.default_rng(0), RegionDecoder()
    for _ in range(20):
        x0, x1 = sorted(rng.choice(width + 1, 2, replace=False).tolist())
        y0, y1 = sorted(rng.choice(height + 1, 2, replace=False).tolist())
        region = region_decoder(content, (width, height), (x0, y0, x1, y1))
        assert region is not None
        np.testing.assert_array_equal(region[y0:y1, x0:x1], pixels[y0:y1, x0:x1], str((x0, y0, x1, y1)))


@pytest.mark.parametrize("kind", ["scan parameters", "JFIF revision", "Adobe transform", *ODD_SAMPLINGS])
def test_without_the_compiled_library_most_of_it_is_kept_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LIBRARY", None)
    content = _sound(kind)
    assert check_image(content, Encoding()).content == content
    assert np.abs(decode.decode(content) - _pillow(content)).max() <= 2


@compiled
def test_image_data_that_is_left_over_is_damage() -> None:
    """Where bytes in the middle are lost, a decoder may come to the end of the image before that of the data."""
    content = jpeg(picture(96, 64))
    left_over = bytes(np.random.default_rng(1).integers(1, 255, 30, dtype=np.uint8))
    for other in (content[:-2] + left_over + content[-2:], content[:-2], content[:-300]):
        with pytest.raises(DamagedImageError):
            check_image(other, Encoding())
        with pytest.raises(DamagedImageError):
            decode.decode(other)


@compiled
def test_harmless_warnings_are_counted_by_kind(tmp_path: Path) -> None:
    for number, kind in enumerate((*HARMLESS, *HARMLESS[:2])):
        (tmp_path / "source" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / "a" / f"{number}.jpg").write_bytes(_sound(kind))
    done = call(convert_imagenet.main, tmp_path / "source", tmp_path / "out", "--workers", "1")
    assert (done.code, done.err) == (0, "")
    assert "harmless: 4 bytes between segments, 1 " in done.out


def _faults() -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(picture(90, 60)).save(file, "PNG")
    png = file.getvalue()
    at = png.index(b"IDAT")
    body = png[at + 4 : -16]

    def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
        check = zlib.crc32(kind + content) if crc is None else crc
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    half = len(body) // 2
    head = png[: at - 4]
    return {
        "another chunk": head + chunk(b"IDAT", body[:half]) + chunk(b"\x8d\3\x98\xa6", body[half:]) + png[-12:],
        "short chunk": png[:-12] + chunk(b"IHDR", b"") + png[-12:],
        "long text": png[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20))) + png[33:],
        "empty": b"",
        "no image": b"<html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "header of a JPEG": jpeg(picture(9, 9))[:20],
    }


@pytest.mark.parametrize("fault", list(_faults()))
def test_whatever_a_decoder_raises_is_damage_with_a_reason(fault: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "0.jpg").write_bytes(jpeg(picture(20, 20)))
    (source / "a" / "1.jpg").write_bytes(_faults()[fault])
    with pytest.raises(DamagedImagesError) as caught:
        convert(source, tmp_path / "out", ConversionSettings(workers=1))
    [note] = caught.value.damaged
    assert note.name == "a/1.jpg"
    assert note.reason
    assert "\n" not in note.reason
    assert "0x" not in note.reason
    assert convert(source, tmp_path / "out", ConversionSettings(workers=1, on_error="skip")).manifest.samples == 1
    with pytest.raises(RecordsError, match=r"1\.jpg"):
        decode.decode_sample(open_records(source), 1)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("x"), MemoryError(), IndexError(), AttributeError("a\nb")]
)
def test_exceptions_of_every_kind_are_one_line(error: Exception) -> None:
    with pytest.raises(DamagedImageError) as caught, codec.sound():
        raise error
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_jpeg_is_reduced_before_anything_is_encoded() -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((14_000, 14_000)).save(file, "JPEG", quality=50)
    checked = check_image(file.getvalue(), Encoding(Shrink(100, 90)))
    assert (checked.size, checked.stored_size) == ((14_000, 14_000), (100, 100))
    with Image.open(io.BytesIO(checked.content)) as image:
        expected = np.asarray(Image.linear_gradient("L").resize((100, 100))).astype(int)
        assert np.abs(np.asarray(image) - expected).mean() < 3


def test_a_side_that_no_jpeg_holds_is_reduced_or_named() -> None:
    file = io.BytesIO()
    Image.fromarray(picture(66_000, 2)).save(file, "PNG")
    assert check_image(file.getvalue(), Encoding(Shrink(500, 90))).stored_size == (500, 1)
    assert check_image(file.getvalue(), Encoding(lossless=True)).stored_size == (66_000, 2)
    with pytest.raises(DamagedImageError, match="66000x2 pixels; give --max-side"):
        check_image(file.getvalue(), Encoding())


@pytest.mark.parametrize("kind", ["header", "plausible header", "progressive header", "png", "scans"])
def test_a_bomb_is_refused_by_its_header(kind: str) -> None:
    small = jpeg(picture(300, 300))
    png = io.BytesIO()
    Image.fromarray(picture(9, 9)).save(png, "PNG")
    start = png.getvalue()
    body = b"IHDR" + struct.pack(">II", 30_000, 30_000) + start[24:29]
    content = {
        "header": with_size(small, 60_000, 60_000),
        "plausible header": with_size(small, 16_000, 16_000),
        "progressive header": with_size(jpeg(picture(300, 300), progressive=True), 16_000, 16_000, 0xC2),
        "png": start[:12] + body + struct.pack(">I", zlib.crc32(body)) + start[33:],
        "scans": many_scans(3000, 800),
    }[kind]
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for judge in (lambda: check_image(content, Encoding(Shrink(100, 90))), lambda: decode.decode(content)):
        with pytest.raises(DamagedImageError):
            judge()
    assert RegionDecoder()(content, (300, 300), (0, 0, 300, 300)) is None
    assert time.process_time() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def _large_on_paper(form: str, side: int) -> bytes:
    """A small file whose header says that it is `side` pixels square."""
    file = io.BytesIO()
    options: dict[str, object] = {"lossless": form == "WEBP lossless", "compression": "tiff_lzw"}
    options |= {"exif": b"Exif\0\0.."} if form == "WEBP canvas" else {}
    Image.fromarray(picture(32, 32)).save(file, form.split()[0], **options)
    content = bytearray(file.getvalue())
    little, large, less = struct.pack("<I", side), struct.pack(">II", side, side), (side - 1).to_bytes(3, "little")
    match form:
        case "GIF":
            content[6:10] = little[:2] * 2
        case "WEBP":
            content[26:30] = little[:2] * 2
        case "WEBP lossless":
            content[21:25] = ((side - 1) << 14 | (side - 1)).to_bytes(4, "little")
        case "WEBP canvas":
            content[24:30] = less * 2
        case "TIFF":
            entries = int.from_bytes(content[4:8], "little") + 2
            for at in range(entries, len(content) - 12, 12):
                if int.from_bytes(content[at : at + 2], "little") in (256, 257, 278):  # both sides, rows of a strip
                    content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
        case "JPEG2000":
            for at in (content.index(b"ihdr") + 4, content.index(b"\xff\x51") + 6, content.index(b"\xff\x51") + 22):
                content[at : at + 8] = large
        case "AVIF":
            at = content.index(b"ispe") + 8
            content[at : at + 8] = large
    return bytes(content)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "WEBP lossless", "WEBP canvas", "TIFF", "JPEG2000", "AVIF"])
def test_hardly_any_bytes_are_no_large_image_in_any_format(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("needs a Pillow that reads AVIF")
    content = _large_on_paper(form, 13_000)
    for judge in (lambda: check_image(content, Encoding(Shrink(100, 90))), lambda: decode.decode(content)):
        with pytest.raises(DamagedImageError, match=rf"its {len(content):,} bytes are too few for 13000x13000 pixels"):
            judge()


def test_a_large_drawing_of_few_bytes_is_read() -> None:
    drawing, rng = np.full((5000, 5000), 255, np.uint8), np.random.default_rng(0)
    drawing[tuple(rng.integers(0, 5000, (2, 20_000)))] = 0
    file = io.BytesIO()
    Image.fromarray(drawing).convert("1").save(file, "PNG")
    assert USUAL_PIXELS / PIXELS_A_BYTE < drawing.size / PIXELS_A_BYTE < len(file.getvalue()) < drawing.size / 100
    assert np.array_equal(decode.decode(file.getvalue())[..., 0], drawing)


@compiled
def test_a_region_has_the_same_limit_of_scans() -> None:
    size, region = (3000, 3000), (0, 0, 10, 10)
    assert RegionDecoder()(many_scans(3000, 40), size, region) is not None
    assert RegionDecoder()(many_scans(3000, 800), size, region) is None
    assert not read_jpeg_header(many_scans(300, 800)).many_scans


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGB"), ("PNG", "LA"), ("BMP", "P"), ("TIFF", "I;16"), ("TIFF", "F")]
)
def test_raw_records_hold_the_very_pixels(form: str, mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    deep = values[..., 0].astype(np.uint16 if mode == "I;16" else np.float32) * 3
    image = Image.fromarray(deep if mode in ("I;16", "F") else values)
    (tmp_path / "source" / "a").mkdir(parents=True)
    path = tmp_path / "source" / "a" / "0.png"
    (image if mode in ("RGB", "I;16", "F") else image.convert(mode)).save(path, form)
    out = tmp_path / "out.beton"
    done = call(convert_imagenet.main, tmp_path / "source", out, "--format", "ffcv", "--raw", "--workers", "1")
    assert done.code == 0
    assert ("clipped" in done.out) == (mode in ("I;16", "F"))
    np.testing.assert_array_equal(decode.decode_sample(open_records(out), 0), _pillow(path.read_bytes()))


def test_smaller_raw_copies_are_those_of_no_jpeg(tmp_path: Path) -> None:
    (tmp_path / "source" / "a").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "source" / "a" / "0.png")
    out, options = tmp_path / "out.beton", ("--format", "ffcv", "--raw", "--workers", "1", "--max-side", "25")
    assert call(convert_imagenet.main, tmp_path / "source", out, *options).code == 0
    expected = Image.fromarray(pixels).resize((25, 20), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(decode.decode_sample(open_records(out), 0), np.asarray(expected))
    assert call(convert_imagenet.main, tmp_path / "source", out, *options, "--quality", "80").code == 2


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\xff\xd0", b"\xff\xe0\0\2"])
def test_a_header_without_an_end_takes_no_time(filler: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(DamagedImageError, match="ends within its header"):
        read_jpeg_header(b"\xff\xd8" + filler * 10_000_000)
    assert time.process_time() - begun < 1
