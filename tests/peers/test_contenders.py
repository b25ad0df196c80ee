"""Every contender of the benchmarks, peers among them, makes all images of a round."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from needs import needs

from equimod.benchmarks import throughput
from equimod.benchmarks.augmenters import AUGMENTERS, AUGMENTS, AugmentSettings, crops
from equimod.benchmarks.loaders import LOADERS, Crops, LoaderSettings
from equimod.benchmarks.peers import LOADERS_OF_PEERS, KorniaRsCrops, _Views
from equimod.benchmarks.titles import DISTRIBUTIONS
from equimod.train.evaluation.table import origin

CONTENDERS = [*((name, name) for name in ("dali", "ffcv", "kornia")), *(("peers", name) for name in LOADERS_OF_PEERS)]


@pytest.mark.parametrize(
    ("name", "augmented"), [*((name, False) for name in LOADERS), ("native", True), ("torchvision", True)]
)
def test_every_contender_loads_every_image_of_a_round(image_tree: Path, name: str, augmented: bool) -> None:
    if name in ("dali", "ffcv"):
        needs(name)
    settings = LoaderSettings(image_tree, "simclr_cifar10", 8, workers=1, images=24, augmented=augmented)
    load = LOADERS[name](settings)
    assert [list(load(epoch)) for epoch in range(2)] == [[8, 8, 8]] * 2


@pytest.mark.parametrize("name", LOADERS_OF_PEERS)
def test_every_peer_loads_every_image_of_a_round(image_tree: Path, name: str) -> None:
    needs("peers")
    settings = LoaderSettings(image_tree, "simclr_cifar10", 8, workers=1, images=24, augmented=False)
    load = LOADERS_OF_PEERS[name](settings)
    assert [list(load(epoch)) for epoch in range(2)] == [[8, 8, 8]] * 2


@pytest.mark.parametrize("crops", [Crops, KorniaRsCrops])
def test_crops_of_peers_are_of_the_sizes_of_the_policy(crops: type[Crops], image_tree: Path) -> None:
    needs("peers")
    from kornia_rs.image import Image

    pixels = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8)
    image = Image.from_numpy(pixels.numpy()) if crops is KorniaRsCrops else pixels.permute(2, 0, 1)
    settings = LoaderSettings(image_tree, "simclr_imagenet", 8, workers=1, images=24, augmented=False)
    x, first, second, *boxes, label = _Views(settings, lambda content: image, crops)[17]
    assert {(part.shape, part.dtype) for part in (x, first, second)} == {((3, 224, 224), torch.uint8)}
    assert all((box >= 0).all() and box[0] + box[2] <= 60 and box[1] + box[3] <= 40 for box in boxes)
    assert label == 2  # of the third class


@pytest.mark.parametrize("name", AUGMENTERS)
def test_every_contender_makes_every_view_of_a_round(name: str) -> None:
    if name == "kornia":
        needs(name)
    settings = AugmentSettings("simclr_cifar10", batch_size=4, images=8, threads=1, device="cpu")
    batch = crops(settings)
    assert [(view.shape, view.dtype) for view in batch] == [((4, 3, 32, 32), torch.uint8)] * 2
    views = AUGMENTS[name](settings)(batch, 0)
    assert [(view.shape, view.dtype) for view in views] == [((4, 3, 32, 32), torch.float32)] * 2
    assert all(-3 < view.min() < -0.5 < 0.5 < view.max() < 3 for view in views)  # normalised
    load = AUGMENTERS[name](settings)
    assert [list(load(epoch)) for epoch in range(2)] == [[4, 4]] * 2


@pytest.mark.parametrize(("extra", "name"), CONTENDERS)
def test_the_package_of_a_contender_has_a_version(extra: str, name: str) -> None:
    needs(extra)
    assert version(DISTRIBUTIONS[name])


def test_a_result_tells_the_versions_of_peers(tmp_path: Path) -> None:
    needs("kornia")
    options = [
        "--policy=simclr_cifar10",
        "--batch-size=4",
        "--images=8",
        "--rounds=1",
        f"--output={tmp_path / 'a.json'}",
    ]
    assert throughput.main(["augment", "--operators=equimod,kornia", *options]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["packages"] == {"kornia": version("kornia")}
    assert f", kornia {version('kornia')};" in origin(result)
