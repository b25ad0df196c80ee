"""Fixtures shared by the tests: where the real images are, a small tree of drawn ones, and a small run on it."""

from __future__ import annotations

import gc
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_conversion import SHARD_SIZE

# Before torch is imported. Where several processes share few cores, OpenMP's threads wait for each other at full speed:
# that takes ten times the time of the work itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")


RECIPE = """
extends: {recipe}
epochs: 4
batch_size: 8
encoder: {{arch: resnet10, width: 8}}
simclr: {{hidden: [16], dim: 8}}
equivariance: {{projector: [16, 8], embedding: [8]}}
optim: {{warmup_epochs: 1, lr: 0.5}}
log: {{every: 1, checkpoint_every: 2}}
system: {{workers: 1}}
"""


def _unpacked(archive: str, folder: Path) -> Path:
    """The unpacked `archive` of $EQUIMOD_DATA below `folder`; skips, or fails under EQUIMOD_REQUIRE_DATA=1."""
    source = Path(os.environ.get("EQUIMOD_DATA", "")) / archive
    if not os.environ.get("EQUIMOD_DATA") or not source.is_file():
        reason = f"needs {archive} in the folder named by EQUIMOD_DATA (now {os.environ.get('EQUIMOD_DATA')!r})"
        if os.environ.get("EQUIMOD_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with zipfile.ZipFile(source) as z:
        z.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def imagenet_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """334 ImageNet training images as an ImageFolder tree: WNID/name.JPEG."""
    return _unpacked("imagenet_sample.zip", tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="session")
def cifar10_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as JPEG files: train/CLASS/NNNN.jpg and test/CLASS/NNNN.jpg."""
    return _unpacked("cifar10.zip", tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ImageFolder tree of smooth random JPEGs: 3 classes, 8 images each, 40x30 to 90x120 pixels, two gray."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for c in range(3):
        (root / f"class_{c}").mkdir()
        for i in range(8):
            width, height = int(rng.integers(40, 90)), int(rng.integers(30, 120))
            pixels = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
            (pixels.convert("L") if i == 7 and c < 2 else pixels).save(root / f"class_{c}" / f"{i:03d}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def imagenet_sample_sizes(imagenet_sample: Path) -> np.ndarray:
    """Original width and height of the ImageNet sample's images: int (334, 2)."""
    return np.array([Image.open(path).size for path in sorted(imagenet_sample.glob("*/*"))])


@pytest.fixture(scope="session")
def options(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a run of 12 steps on the small tree, without --output."""
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    shapes = Path(__file__).parents[1] / "train" / "recipes" / "simclr_equimod_shapes.yaml"
    recipe.write_text(RECIPE.format(recipe=os.path.relpath(shapes, recipe.parent)), encoding="utf-8")
    return ["--config", str(recipe), "--data", str(image_tree)]


@pytest.fixture
def source(image_tree: Path, tmp_path: Path) -> Path:
    """A copy of `image_tree` to damage; the copy of every test has the same name."""
    return Path(shutil.copytree(image_tree, tmp_path / "source"))


@pytest.fixture(scope="module")
def expected(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted conversion of an undamaged `source`."""
    from equimod.pipelines.conversion.convert import convert
    from equimod.pipelines.conversion.settings import ConversionSettings

    folder = tmp_path_factory.mktemp("expected")
    shutil.copytree(image_tree, folder / "source")
    convert(folder / "source", folder / "records", ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    return folder / "records"


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    """Run finalizers between modules: CPython 3.11 gives SystemError where numba's run while it parses source."""
    yield
    gc.collect()
