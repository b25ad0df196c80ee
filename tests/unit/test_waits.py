"""Whatever may take long on real data tells of its progress: here every look at the clock takes six seconds."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import torchvision
from fake_archives import add, write_cifar10, write_train_archive
from fake_clock import FakeClock
from pyarrow import parquet

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.cifar import ARCHIVE, FOLDER, cifar10_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import open_records
from equimod.pipelines.shapes import draw_dataset
from equimod.tools.inspect_records import verify
from equimod.tools.pack_gpu_check import ImageSet, _pack_images
from equimod.train import data
from equimod.train.evaluation.factors import measure
from equimod.train.evaluation.features import Features
from equimod.train.evaluation.knn import classify

SETTINGS = ConversionSettings(workers=1, shard_size=5)


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeClock(monkeypatch, a_look=6.0)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was told on stderr since it was last asked for."""
    return lambda: capsys.readouterr().err


@pytest.mark.parametrize("labels", ["auto", "none"])
def test_opening_a_folder_of_images(image_tree: Path, told: Any, labels: Any) -> None:
    open_records(image_tree, labels)
    err = told()
    assert "listing: 1 folders" in err
    assert "reading headers: 1 of 24 images" in err


def test_converting_and_finding_that_it_was_done(image_tree: Path, tmp_path: Path, told: Any) -> None:
    convert(image_tree, tmp_path / "records", SETTINGS)
    assert "of 24 images" in told()
    convert(image_tree, tmp_path / "records", SETTINGS)
    assert "comparing: 1 of 5 shards" in told()


def test_going_on_with_a_conversion(
    image_tree: Path, tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        finish = "equimod.pipelines.conversion.convert._finish"
        broken.setattr(finish, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(image_tree, tmp_path / "records", SETTINGS)
    told()
    convert(image_tree, tmp_path / "records", SETTINGS)
    assert "comparing: 1 of 5 shards" in told()


def test_writing_a_beton_file(image_tree: Path, tmp_path: Path, told: Any) -> None:
    convert_to_beton(open_source(image_tree), tmp_path / "r.beton", SETTINGS)
    err = told()
    assert "converting: " in err
    assert "writing r.beton: 1 of 24 images" in err
    assert "reading names: 1 of 24 samples" in err


def test_opening_records_as_a_source(expected: Path, told: Any) -> None:
    open_source(expected)
    assert "reading names: 1 of 24 samples" in told()


def test_verifying_records(expected: Path, told: Any) -> None:
    verify(open_records(expected))
    assert "verifying: 5 of 24 images" in told()  # a shard


def test_drawing_the_embedded_data_set(tmp_path: Path, told: Any) -> None:
    draw_dataset(tmp_path / "shapes", samples=300, seed=0)
    assert "drawing: 250 of 300 images" in told()


def test_a_compressed_archive(image_tree: Path, tmp_path: Path, told: Any) -> None:
    path = tmp_path / "images.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(2):
            add(archive, f"a/{number}.jpg", (image_tree / "class_0" / "000.jpg").read_bytes())
    open_source(path)
    err = told()
    assert "unpacking: 0 MiB" in err
    assert "listing: 1 files" in err


def test_the_archive_of_imagenet(image_tree: Path, tmp_path: Path, told: Any) -> None:
    path = tmp_path / "ILSVRC2012_img_train.tar"
    write_train_archive(path, image_tree)
    open_source(path)
    assert "listing: 1 of 3 classes" in told()


def test_shards_of_another_program(image_tree: Path, tmp_path: Path, told: Any) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            add(archive, f"{number}.cls", b"3")
            add(archive, f"{number}.jpg", (image_tree / "class_0" / "000.jpg").read_bytes())
    open_source(tmp_path / "{0,1}.tar")
    err = told()
    assert "listing: 1 files" in err
    assert "reading labels: 1 samples" in err


def test_parquet_files(image_tree: Path, tmp_path: Path, told: Any) -> None:
    content = (image_tree / "class_0" / "000.jpg").read_bytes()
    for number in range(2):
        table = pyarrow.table({"image": [{"bytes": content, "path": f"{number}.jpg"}], "label": [number]})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    open_source(tmp_path)
    assert "reading labels: 1 of 2 files" in told()


def test_cifar10_is_downloaded(tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path)
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as archive:
        archive.add(tmp_path / FOLDER, FOLDER)

    class Cifar10:
        filename, base_folder, url = ARCHIVE, FOLDER, (tmp_path / ARCHIVE).as_uri()

        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert (Path(root) / ARCHIVE).read_bytes() == (tmp_path / ARCHIVE).read_bytes()

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar10)
    source = data._download_cifar10(tmp_path / "unused", "train", tmp_path / "cache")
    assert len(source.items) == len(cifar10_source(tmp_path, "train").items)
    err = told()
    assert f"downloading {ARCHIVE}: 0 MiB" in err
    assert "reading: 1 of 5 files" in err


def test_nearest_neighbours(told: Any) -> None:
    features = Features(torch.rand(300, 4), torch.zeros(300, dtype=torch.int64), ("a", "b"))
    dict(classify(features, features))
    assert "nearest neighbours: 1 of 2 batches" in told()


def test_factors(told: Any) -> None:
    h, of_both = torch.rand(60, 3), {"x": torch.rand(60).double(), "y": torch.rand(60).double()}
    dict(measure(h, of_both, h, of_both))
    assert "reading out: 1 of 2 factors" in told()


def test_packing_images_for_a_machine_without_a_network(image_tree: Path, tmp_path: Path, told: Any) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in image_tree.rglob("*.jpg"):
            archive.write(path, f"train/{path.relative_to(image_tree)}")
    _pack_images(tmp_path, (ImageSet("tiny", "images.zip", "train/", 6),), tmp_path / "data.tar.gz")
    with tarfile.open(tmp_path / "data.tar.gz") as packed:
        (tmp_path / "out.beton").write_bytes(packed.extractfile("data/tiny.beton").read())
    assert len(open_records(tmp_path / "out.beton")) == 6
    err = told()
    assert "unpacking: 1 of 6 images" in err
    assert re.search("^packing: ", err, re.MULTILINE)
