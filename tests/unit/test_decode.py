"""What is decoded of a JPEG is what simplejpeg decodes there, byte for byte; everything unusual is left to it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from needs import needs_jpeg
from numpy.typing import NDArray
from PIL import Image
from torch_resize import random_box, random_part

from equimod.pipelines.decode import RegionDecoder
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.resize import CropResizer, center_crop_specs, crop_specs, regions_of_interest

needs_jpeg(module=True)

SIZES = [(300, 200), (57, 91), (33, 17), (16, 16), (100, 8), (9, 200), (1, 1)]


def _pixels(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Noise over smooth colours: chroma that changes from one pixel to the next, and flat places."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    return (np.asarray(coarse) // 2 + rng.integers(0, 128, (height, width, 3))).astype(np.uint8)


def _regions(rng: np.random.Generator, width: int, height: int) -> list[tuple[int, int, int, int]]:
    boxes = [random_box(rng, width, height) for _ in range(6)]
    return [(0, 0, width, height), *((x, y, x + w, y + h) for x, y, w, h in boxes)]


def _agrees(decode: RegionDecoder, jpeg: bytes, region: tuple[int, int, int, int]) -> None:
    whole = simplejpeg.decode_jpeg(jpeg)
    height, width, _ = whole.shape
    found = decode(jpeg, (width, height), region)
    assert found is not None
    x0, y0, x1, y1 = region
    np.testing.assert_array_equal(found[y0:y1, x0:x1], whole[y0:y1, x0:x1], str((whole.shape, region)))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_a_region_has_the_bytes_of_the_whole_image(subsampling: str) -> None:
    rng, decode = np.random.default_rng(0), RegionDecoder()
    for width, height in SIZES:
        for quality in (40, 95):
            pixels = _pixels(rng, width, height)
            gray = subsampling == "Gray"
            jpeg = simplejpeg.encode_jpeg(
                pixels[..., :1].copy() if gray else pixels,
                quality,
                "GRAY" if gray else "RGB",
                subsampling,
            )
            for region in _regions(rng, width, height):
                _agrees(decode, jpeg, region)


@pytest.mark.parametrize("subsampling", ["422", "420", "440", "411"])
def test_every_single_pixel_has_the_bytes_of_the_whole_image(subsampling: str) -> None:
    jpeg = simplejpeg.encode_jpeg(_pixels(np.random.default_rng(7), 37, 35), 95, "RGB", subsampling)
    decode = RegionDecoder()
    for x, y in np.ndindex(37, 35):
        _agrees(decode, jpeg, (x, y, x + 1, y + 1))


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}], ids=str)
def test_other_ways_to_encode_make_no_difference(options: dict[str, int]) -> None:
    rng, decode = np.random.default_rng(1), RegionDecoder()
    for width, height in SIZES:
        file = io.BytesIO()
        Image.fromarray(_pixels(rng, width, height)).save(file, "JPEG", **options)
        for region in _regions(rng, width, height):
            _agrees(decode, file.getvalue(), region)


def test_regions_of_real_images_have_the_bytes_of_the_whole_image(imagenet_sample: Path) -> None:
    rng, decode, records = np.random.default_rng(2), RegionDecoder(), open_records(imagenet_sample)
    for position in range(0, len(records), 3):
        for region in _regions(rng, *records.size[position].tolist())[:4]:
            _agrees(decode, bytes(records.read(position)), region)


def _saved(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_what_is_no_sound_rgb_or_gray_jpeg_of_the_size_is_left_to_others() -> None:
    decode, image = RegionDecoder(), Image.fromarray(_pixels(np.random.default_rng(3), 64, 48))
    jpeg, size, region = _saved(image), (64, 48), (0, 0, 64, 48)
    assert decode(jpeg, size, region) is not None
    other_kinds = _saved(image, "PNG"), _saved(image.convert("CMYK"))
    for other in (*other_kinds, jpeg[:-300], jpeg[:20], b"", b"\xff\xd8\xff\xd9"):
        assert decode(other, size, region) is None
    assert decode(jpeg[:-2], size, (0, 0, 64, 8)) is None
    garbled = bytearray(jpeg)
    garbled[len(jpeg) // 2 : len(jpeg) // 2 + 40] = b"\xff\x01" * 20
    assert decode(bytes(garbled), size, region) is None
    assert decode(jpeg, (48, 64), (0, 0, 8, 8)) is None
    assert decode(np.asarray(image), size, region) is None
    for outside in [(-1, 0, 64, 48), (0, 0, 65, 48), (0, 0, 64, 49), (5, 5, 5, 9), (0, 9, 64, 9)]:
        assert decode(jpeg, size, outside) is None


def test_memory_is_used_again() -> None:
    rng, decode = np.random.default_rng(4), RegionDecoder()
    large, small = (_saved(Image.fromarray(_pixels(rng, *size))) for size in [(200, 100), (50, 60)])
    first = decode(large, (200, 100), (0, 0, 200, 100))
    second = decode(small, (50, 60), (0, 0, 50, 60))
    assert first is not None
    assert second is not None
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(second, simplejpeg.decode_jpeg(small))


def test_cuts_look_at_nothing_beside_what_is_seen_of_the_image() -> None:
    rng, policy = np.random.default_rng(5), POLICIES["simclr_imagenet"].x
    for _ in range(60):
        width, height = (int(side) for side in rng.integers(1, 600, 2))
        boxes = np.array([[random_box, random_part][int(rng.integers(2))](rng, width, height)])
        sizes = np.array([[width, height]], dtype=np.int32)
        specs = np.concatenate([center_crop_specs(sizes * int(rng.integers(1, 4)), sizes, policy)] * 2)[None]
        specs[0, 1] = crop_specs(boxes, policy.size, ["bicubic", "bilinear"][int(rng.integers(2))])[0]
        kept = specs[:, :: int(rng.choice([1, 2]))][:, : int(rng.integers(1, 3))]
        x0, y0, x1, y1 = regions_of_interest(kept, sizes)[0].tolist()
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        other = 255 - image
        other[y0:y1, x0:x1] = image[y0:y1, x0:x1]
        found, expected = ([np.empty((1, 224, 224, 3), np.uint8) for _ in kept[0]] for _ in range(2))
        CropResizer(kept, found)(0, other)
        CropResizer(kept, expected)(0, image)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
