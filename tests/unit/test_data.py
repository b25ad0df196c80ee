"""Data sets that are made on the spot: once, completely, and with a clear word where that is not possible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from fake_archives import CIFAR_CLASSES, write_cifar10

from equimod.pipelines.conversion.cifar import ARCHIVE, FOLDER
from equimod.pipelines.decode import decode
from equimod.pipelines.images import open_images
from equimod.train import data
from equimod.train.config import ConfigError, parse
from equimod.train.distributed import DistInfo

ALONE = DistInfo(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIMOD_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "SHAPES_SAMPLES", {"train": 40, "test": 20})
    return tmp_path


def test_shapes_are_drawn_once_and_taken_for_training_and_validation(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse(["--method", "simclr"])
    for times in (2, 0):
        prepared, records = data.prepare(config, ALONE)
        assert (len(records), len(open_images(prepared.val))) == (40, 20)
        assert prepared.data == (cache / "shapes" / "train",)
        assert capsys.readouterr().out.count("making") == times
    assert sorted(path.name for path in (cache / "shapes").iterdir()) == [
        "test",
        "test-factors.csv",
        "train",
        "train-factors.csv",
    ]


def test_a_data_set_whose_making_was_interrupted_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(["--method", "simclr"])
    finish = "equimod.pipelines.conversion.convert._finish"
    with monkeypatch.context() as broken:
        broken.setattr(finish, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            data.prepare(config, ALONE)
    assert not (cache / "shapes" / "train" / "manifest.json").exists()
    assert len(data.prepare(config, ALONE)[1]) == 40


def test_cifar10_is_taken_from_torchvision_pixel_for_pixel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cifar10:
        filename, base_folder = ARCHIVE, FOLDER
        url = (cache / ARCHIVE).as_uri()

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (Path(root) / ARCHIVE).read_bytes() == b"packed"
            if train:
                pixels.update(write_cifar10(Path(root)))

    (cache / ARCHIVE).write_bytes(b"packed")
    pixels: dict[str, np.ndarray] = {}
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar10)
    _, records = data.prepare(parse(["--method", "simclr", "--dataset", "cifar10"]), ALONE)
    assert (records.classes, len(records)) == (CIFAR_CLASSES, len(pixels["train"]))
    for position, expected in enumerate(pixels["train"]):
        np.testing.assert_array_equal(decode(records.read(position)), expected)


def test_cifar10_without_a_network_names_the_option(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", (cache / "nowhere").as_uri())
    with pytest.raises(ConfigError, match="--data RECORDS"):
        data.prepare(parse(["--method", "simclr", "--dataset", "cifar10"]), ALONE)
