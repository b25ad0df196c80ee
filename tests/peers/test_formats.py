"""Stock ffcv and stock DALI read what is written here, and what ffcv writes is read here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from needs import needs
from PIL import Image

from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.decode import decode
from equimod.pipelines.records import open_records
from equimod.pipelines.records.beton import BetonRecords
from equimod.pipelines.records.protocol import fingerprint
from equimod.pipelines.records.tar import TarRecords


@pytest.fixture(scope="module")
def tar(imagenet_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> TarRecords:
    folder = tmp_path_factory.mktemp("tar") / "records"
    convert(imagenet_sample, folder, ConversionSettings(workers=2, shard_size=100))
    return TarRecords(folder)


@pytest.fixture(scope="module")
def betons(tar: TarRecords) -> dict[bool, Path]:
    """The ImageNet sample as JPEG files (False) and as pixels (True)."""
    paths = {raw: tar.folder.parent / f"{'raw' if raw else 'jpeg'}.beton" for raw in (False, True)}
    for raw, path in paths.items():
        write_beton(tar, path, tar.manifest, raw=raw, workers=2)
    return paths


def test_bytes_are_those_of_the_source_files(imagenet_sample: Path, tar: TarRecords, betons: dict[bool, Path]) -> None:
    records = BetonRecords(betons[False])
    assert len(records) == 334
    for position in range(len(records)):
        expected = (imagenet_sample / records.source(position)).read_bytes()
        assert bytes(records.read(position)) == bytes(tar.read(position)) == expected
    assert fingerprint(records).table == fingerprint(tar).table


def test_raw_files_hold_the_decoded_pixels(tar: TarRecords, betons: dict[bool, Path]) -> None:
    records = BetonRecords(betons[True])
    assert records.raw
    for position in range(0, len(records), 7):
        np.testing.assert_array_equal(decode(records.read(position)), decode(tar.read(position)))


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("raw", [False, True])
def test_stock_ffcv_reads_the_files(raw: bool, os_cache: bool, tar: TarRecords, betons: dict[bool, Path]) -> None:
    """ffcv's Loader with its own decoders: the numbers are ours, the pixels what its decoder makes of the same JPEG."""
    needs("ffcv")
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader import Loader

    decoder = CenterCropRGBImageDecoder((64, 64), 1.0)
    loader = Loader(
        str(betons[raw]), 50, num_workers=1, os_cache=os_cache, drop_last=False, pipelines={"image": [decoder]}
    )
    assert list(loader.reader.field_names) == ["image", "label", "index", "width", "height"]
    position = 0
    for images, *numbers in loader:
        for image, label, index, width, height in zip(images, *(n.ravel().tolist() for n in numbers), strict=True):
            assert (label, index) == (tar.label[position], tar.index[position])
            assert (width, height) == tuple(tar.size[position])
            pixels = decode(tar.read(position))
            if not raw:
                content = np.frombuffer(tar.read(position), np.uint8)
                pixels = np.empty((height, width, 3), np.uint8)
                imdecode(content, pixels, height, width, height, width)
            side = min(width, height)
            expected, top, left = np.empty((64, 64, 3), np.uint8), (height - side) // 2, (width - side) // 2
            resize_crop(pixels, top, top + side, left, left + side, expected)
            np.testing.assert_array_equal(image, expected)
            position += 1
    assert position == len(tar)


@pytest.mark.parametrize("mode", ["jpg", "raw", "proportion"])
def test_files_written_by_ffcv_are_read(mode: str, image_tree: Path, tmp_path: Path) -> None:
    needs("ffcv")
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    paths = sorted(image_tree.glob("*/*.jpg"))
    samples = [(Image.open(path).convert("RGB"), 0.5, number % 3) for number, path in enumerate(paths)]
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=95), "weight": FloatField(), "label": IntField()}
    DatasetWriter(str(tmp_path / "theirs.beton"), fields, num_workers=2).from_indexed_dataset(samples)
    records = open_records(tmp_path / "theirs.beton")
    assert records.raw == (mode != "jpg")
    assert records.label.tolist() == [number % 3 for number in range(24)]
    assert records.index.tolist() == list(range(24))
    assert records.classes == ["0", "1", "2"]
    for position, (image, _, _) in enumerate(samples):
        pixels = decode(records.read(position))
        assert tuple(records.size[position]) == image.size
        assert np.abs(pixels.astype(float) - np.asarray(image, dtype=float)).mean() < (0.1 if mode == "raw" else 4)


def test_dalis_webdataset_reader_reads_the_shards(imagenet_sample: Path, tar: TarRecords) -> None:
    """With no code of this project in the read: bytes, labels and metadata."""
    needs("dali")
    import json

    from nvidia.dali import Pipeline, fn, types

    shards = sorted(tar.folder.glob("shard-*.tar"))
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        outputs = fn.readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(path.with_suffix(".idx")) for path in shards],
            ext=["jpg;png", "cls", "json"],
            dtypes=[types.UINT8] * 3,
        )
        pipeline.set_outputs(*outputs)
    for position in range(len(tar)):
        jpeg, label, meta = (np.array(output[0]).tobytes() for output in pipeline.run())
        fields = json.loads(meta)
        assert jpeg == (imagenet_sample / fields["name"]).read_bytes()
        assert (int(label), fields["index"]) == (tar.label[position], position)
