"""What is exported loads as its model card says, and gives the features of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from needs import needs
from PIL import Image
from torch import Tensor

from equimod.pipelines.stored import DamagedFileError, FileDigest
from equimod.tools.export import main as export
from equimod.train.config import ConfigError, read_recipe
from equimod.train.evaluate import main as evaluate
from equimod.train.main import main as train
from equimod.train.opened_encoder import open_encoder

ARCHS = {
    "cifar": ["--encoder.arch", "resnet10", "--encoder.width", "8", "--encoder.stem", "cifar"],
    "narrow": ["--encoder.arch", "resnet50", "--encoder.width", "8", "--encoder.stem", "imagenet"],
    "published": ["--encoder.arch", "resnet10", "--encoder.width", "64", "--encoder.stem", "imagenet"],
    "vit": ["--encoder.arch", "test_vit"],
    "convnext": ["--encoder.arch", "test_convnext"],
}


@pytest.fixture(scope="module")
def runs(options: list[str], image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Short runs, made when they are asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def run(name: str) -> Path:
        if name not in made:
            if name in ("vit", "convnext"):
                needs("timm")
            made[name] = folder / name
            short = ["--epochs", "2", "--image-size", "32", "--optim.lr", "0.001", "--val", str(image_tree)]
            assert train([*options, *ARCHS[name], *short, "--output", str(made[name])]) == 0
        return made[name]

    return run


def _code(folder: Path, form: str) -> str:
    """What the model card says for a form."""
    found = re.search(rf"^{form}:\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.S | re.M)
    assert found is not None
    return found[1]


def _loaded(folder: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the card's code makes, run beside the folder."""
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(_code(folder, form), names)
    return names


def _features(model: Any, images: Tensor, form: str) -> Tensor:
    if form == "onnx":
        return torch.from_numpy(model(images.numpy()))
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "torchvision") for name in ("cifar", "narrow", "published")),
        *((name, "timm") for name in ("published", "vit", "convnext")),
        *((name, "hub") for name in ("cifar", "narrow", "vit")),
        *((name, form) for name in ("cifar", "vit") for form in ("onnx", "torchscript")),
    ],
)
def test_every_form_gives_the_features_of_the_run(
    name: str, form: str, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form in ("timm", "onnx"):
        needs(form)
    assert export([str(runs(name)), "--to", form, "--output", str(tmp_path / "exported")]) == 0
    model = _loaded(tmp_path / "exported", form, monkeypatch)["model"]
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = open_encoder(str(runs(name))).encoder(images)
    assert expected.std() > 1e-4
    torch.testing.assert_close(_features(model, images, form), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["timm", "hub"])
def test_the_preprocessing_is_that_of_x(form: str, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("timm")
    from equimod.pipelines.augment import Augment
    from equimod.pipelines.policy import AugmentationPolicy

    assert export([str(runs("published")), "--to", form, "--output", str(tmp_path / "exported")]) == 0
    transform = _loaded(tmp_path / "exported", form, monkeypatch)["transform"]
    x = open_encoder(str(runs("published"))).x
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    found = transform(Image.fromarray(pixels))
    expected = Augment(AugmentationPolicy(x, ())).center(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    levels = 255 * torch.tensor(x.normalize.std)[:, None, None]
    far = (found - expected).abs() * levels
    assert far.mean() < 0.5  # Pillow rounds, and cuts what bicubic overshoots, between rows and columns
    assert far.max() < 8


def test_the_share_of_the_crop_comes_out_in_timms_pixels() -> None:
    import math

    from equimod.pipelines.policy import CenterPolicy, Normalize
    from equimod.train.export.formats import _crop_pct

    normalize = Normalize((0.5,) * 3, (0.5,) * 3)
    for size in range(8, 300, 7):
        for resize in range(size, 2 * size):
            assert math.floor(size / _crop_pct(CenterPolicy(size, resize, normalize))) == resize


def test_the_card_and_the_recipe_tell_how_it_came_about_and_not_where(
    runs: Any, image_tree: Path, tmp_path: Path
) -> None:
    run, folder = runs("cifar"), tmp_path / "birds"
    assert evaluate([str(run), "--knn", "--linear-cached", "--figures"]) == 0
    arguments = ["--to", "hub", "torchvision", "--license", "cc-by-4.0", "--output", str(folder)]
    assert export([str(run), *arguments]) == 0
    names = {"README.md", "config.json", "hubconf.py", "model.safetensors", "recipe.yaml", "figures"}
    assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in (folder / "figures").iterdir()} == {"loss.png"}
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "pytorch")
    assert "class, kNN top-1, %" in card
    assert "# birds" in card
    for text in (card, (folder / "recipe.yaml").read_text(), (folder / "config.json").read_text()):
        assert str(image_tree.parent) not in text
    recipe = read_recipe(folder / "recipe.yaml")
    assert recipe.encoder == open_encoder(str(run)).settings
    assert recipe.epochs == 2


def test_scores_of_other_weights_are_left_out(runs: Any, tmp_path: Path) -> None:
    run = runs("narrow")
    assert evaluate([str(run), "--knn"]) == 0
    scores = json.loads((run / "eval.json").read_text())
    (run / "eval.json").write_text(json.dumps({**scores, "weights": "0" * 64}))
    assert export([str(run), "--output", str(tmp_path / "exported")]) == 0
    assert "Not measured." in (tmp_path / "exported" / "README.md").read_text()


def test_an_export_opens_again_and_is_noticed_where_it_is_damaged(runs: Any, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    assert export([str(runs("cifar")), "--output", str(folder)]) == 0
    opened, of_run = open_encoder(str(folder)), open_encoder(str(runs("cifar")))
    assert (opened.settings, opened.x) == (of_run.settings, of_run.x)
    assert FileDigest.of_content(opened.weights) == FileDigest.of(folder / "model.safetensors")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedFileError, match="does not have the SHA-256"):
        open_encoder(str(folder))
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(ConfigError, match="was not written by equimod export"):
        open_encoder(str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "timm"], r"to=timm: it has no resnet10 width 8 with the cifar stem; give --to hub or"),
        (["--output", "{run}"], r"is there already; remove it, or give another --output"),
        (["--checkpoint", "nowhere"], r"nowhere is no checkpoint: it is not there"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("cifar")
    before = {path.name for path in run.iterdir()}
    assert export([str(run), *(argument.format(run=run) for argument in arguments)]) in (1, 2)
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert {path.name for path in run.iterdir()} == before


def test_torchvision_has_no_transformers(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(runs("vit")), "--to", "torchvision"]) == 2
    assert "torchvision: it has no test_vit; give --to timm or hub" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run (no config.yaml)" in capsys.readouterr().err
