"""Images of one's own: settings that follow from their number, said; mean and standard deviation, measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image

from equimod.models.settings import METHOD_NAMES
from equimod.pipelines.policy import POLICIES, CenterPolicy, Normalize
from equimod.pipelines.records import open_records
from equimod.train.config import RECIPES, ConfigError, parse, read_recipe
from equimod.train.config.own_images import Images, look_at, settings_for
from equimod.train.data import measured_normalization
from equimod.train.main import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """50 images of 120x90 without labels, two values of each colour."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(50):
        pixels = np.zeros((90, 120, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 1] = 51, (0, 255)[number % 2]
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.parametrize(
    ("count", "side", "gpu", "expected"),
    [  # image size, arch, stem, width, batch, epochs, warm-up, lr
        (2_000, 375, True, (96, "resnet18", "imagenet", 64, 64, 200, 10, 0.6)),
        (2_000, 375, False, (64, "resnet18", "imagenet", 32, 64, 50, 5, 0.6)),
        (24, 375, False, (64, "resnet18", "imagenet", 32, 16, 50, 5, 0.3)),
        (10, 375, True, (96, "resnet18", "imagenet", 64, 8, 200, 10, 0.2121)),
        (1, 375, True, (96, "resnet18", "imagenet", 64, 2, 200, 10, 0.1061)),
        (99_999, 375, True, (96, "resnet18", "imagenet", 64, 256, 200, 10, 1.2)),
        (100_000, 375, True, (224, "resnet50", "imagenet", 64, 256, 100, 10, 1.2)),
        (100_000, 375, False, (64, "resnet18", "imagenet", 32, 256, 50, 5, 1.2)),
        (50_000, 32, True, (32, "resnet18", "cifar", 64, 256, 200, 10, 1.2)),
        (50_000, 20, True, (32, "resnet18", "cifar", 64, 256, 200, 10, 1.2)),
        (50_000, 95, True, (64, "resnet18", "imagenet", 64, 256, 200, 10, 1.2)),
    ],
)
def test_settings_follow_from_number_and_size(count: int, side: int, gpu: bool, expected: tuple[object, ...]) -> None:
    assert tuple(settings_for(Images(count, side), gpu=gpu, lr=1.2).values()) == expected


def test_given_batch_and_epochs_lead_the_learning_rate_and_the_warm_up() -> None:
    settings = settings_for(Images(2_000, 375), gpu=True, lr=1.2, batch_size=16, epochs=5)
    assert (settings["batch_size"], settings["optim.lr"], settings["optim.warmup_epochs"]) == (16, 0.3, 0.5)


def test_an_encoder_of_given_weights_is_not_narrowed(photos: Path) -> None:
    said: list[str] = []
    on_cpu = ["--data", str(photos), "--system.device", "cpu"]
    assert parse([*on_cpu, "--encoder.weights", "resnet18.pth"], said.append).encoder.width == 64
    assert "encoder.width=64" in said[0]
    assert parse([*on_cpu, "--encoder.weights", "None"]).encoder.width == 32


def test_images_alone_are_enough_and_what_was_chosen_is_said(photos: Path) -> None:
    said: list[str] = []
    config = parse(["--data", str(photos), "--system.device", "cpu"], said.append)
    assert (config.method, config.equimod, config.dataset, config.normalize) == ("simclr", True, None, "measured")
    assert (config.batch_size, config.epochs, config.image_size, config.optim.lr) == (16, 50, 64, 0.3)
    assert config.augment == POLICIES["simclr_imagenet"].at(64)
    assert config.run_folder() == Path("runs/simclr-equimod-photos")
    assert said == [
        "50 images of 90 pixels, on a CPU: image_size=64 encoder.arch=resnet18 encoder.stem=imagenet encoder.width=32 "
        "batch_size=16 epochs=50 optim.warmup_epochs=5.0 optim.lr=0.3, where no others are given"
    ]


def test_what_is_given_goes_over_what_follows(photos: Path) -> None:
    words = [
        "--data",
        str(photos),
        "--batch_size",
        "32",
        "--epochs=3",
        "--image-size",
        "32",
        "--encoder.arch",
        "resnet10",
    ]
    config = parse(["--system.device", "cpu", "--optim.momentum", "0.5", *words])
    assert (config.batch_size, config.epochs, config.augment.size) == (32, 3, 32)
    assert (config.encoder.arch, config.encoder.width, config.optim.momentum) == ("resnet10", 32, 0.5)
    assert (config.optim.lr, config.optim.warmup_epochs) == (0.4243, 0.3)
    assert not parse(["--data", str(photos), "--no-equimod"]).equimod
    assert not parse(["--data", str(photos), "--method", "byol"]).equimod


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_has_settings_for_them(method: str, photos: Path) -> None:
    recipe = read_recipe(RECIPES / f"{method}.yaml")
    assert (recipe.method, recipe.dataset, recipe.image_size, recipe.normalize) == (method, None, 96, "measured")
    words = ["--data", str(photos), "--equimod", "--system.device", "cpu"]
    assert parse(["--recipe", method, *words]).image_size == 64
    by_method = parse(["--method", method, *words])
    assert (by_method.optim.lr, by_method.policy) == (round(recipe.optim.lr / 4, 4), recipe.policy)


def test_a_recipe_of_ones_own_says_everything_itself(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: simclr\nbatch_size: 8", encoding="utf-8")
    said: list[str] = []
    config = parse(["--config", str(tmp_path / "mine.yaml"), "--data", str(photos)], said.append)
    assert (config.batch_size, config.epochs, config.image_size, said) == (8, 200, 96, [])


def test_a_misspelt_option_has_its_hint_before_any_image_is_looked_at() -> None:
    answer = call(main, "--data", "nowhere", "--bach-size", "3")
    assert answer.code == 2
    assert "--batch-size" in answer.err
    assert "nowhere" not in answer.err


def test_help_looks_at_no_images() -> None:
    answer = call(main, "--data", "nowhere", "--help")
    assert answer.code == 0
    assert "--image-size" in answer.out


def test_a_recipe_without_images_and_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data is missing; give --data IMAGES, or --dataset shapes"):
        parse(["--recipe", "simclr"])


def test_images_are_counted_without_opening_all(photos: Path) -> None:
    for number in range(50, 200):
        (photos / f"{number:03}.png").write_bytes((photos / "00.png").read_bytes())
    names = sorted(photos.iterdir())
    for position in (1, 199):  # every second one is opened
        names[position].write_bytes(b"damaged")
    assert look_at(photos, "auto") == Images(200, 90)


def test_mean_and_standard_deviation_are_those_of_the_pixels(photos: Path) -> None:
    found = measured_normalization(open_records(photos), CenterPolicy(32, 37, Normalize((9, 9, 9), (9, 9, 9))))
    assert found.mean == (0.2, 0.5, 0.0)
    assert found.std == (0.004, 0.5, 0.004)  # not 0, by which nothing can be divided


def test_a_run_measures_stores_and_keeps_them(photos: Path, tmp_path: Path) -> None:
    words = ["--data", str(photos), "--epochs", "2", "--encoder.width", "8", "--encoder.arch", "resnet10"]
    words += ["--image-size", "32", "--output", str(tmp_path / "run"), "--system.device", "cpu"]
    assert call(main, *words).code == 0
    config = read_recipe(tmp_path / "run" / "config.yaml")
    assert (config.normalize, config.precision) == ("measured", "fp32")
    assert config.augment.x.normalize.mean == config.augment.views[1].normalize.mean == (0.2, 0.5, 0.0)
    torch.manual_seed(0)
    assert call(main, *words, "--resume", "auto").code == 0
    assert read_recipe(tmp_path / "run" / "config.yaml") == config
    refused = call(main, *words, "--resume", "auto", "--augment.normalize.mean", "0", "0", "0")
    assert refused.code == 2
    assert "normalize=given (was measured)" in refused.err
