"""The augmentation as settings: every field by its key, in recipes and on the command line, kept in config.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import call

from equimod.models.settings import ConfigError
from equimod.pipelines.policy import (
    POLICIES,
    ColorJitter,
    GaussianBlur,
    HorizontalFlip,
    Normalize,
    Solarize,
    evaluation_policy,
)
from equimod.train.config import Config, differences, parse, read_recipe
from equimod.train.main import main

BASE = ["--method", "simclr", "--dataset", "shapes"]
SHAPES = POLICIES["simclr_shapes"]


def _augment(*options: str) -> Any:
    return parse([*BASE, *options]).augment


def _read(text: str, folder: Path) -> Config:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return read_recipe(folder / "mine.yaml")


def test_without_settings_it_is_the_policy() -> None:
    assert _augment() == SHAPES
    assert _augment("--policy", "byol_cifar10") == POLICIES["byol_cifar10"]


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if key.endswith("views") else ()
    if not inner:
        yield key, value
    for name, one in inner:
        yield from _leaves(one, f"{key}.{name}")


OTHER = {"bicubic": "bilinear", 128: 100}
SET_BY_IMAGE_SIZE = ("crop.size", "x.size")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pair
        for pair in _leaves(asdict(POLICIES["byol_cifar10"]), "augment")
        if not pair[0].endswith(SET_BY_IMAGE_SIZE)  # which all change together
    ],
)
def test_every_field_of_a_policy_is_a_setting(key: str, value: Any, tmp_path: Path) -> None:
    """And no other field changes, on the command line, in a recipe and after a round through config.yaml."""
    if isinstance(value, tuple):
        new: Any = [number * 0.9 for number in value]
    elif value in OTHER:
        new = OTHER[value]
    else:
        new = value + 2 if isinstance(value, int) else value * 0.5 + 0.01
    words = [str(word) for word in (new if isinstance(new, list) else [new])]
    config = parse([*BASE, "--policy", "byol_cifar10", f"--{key.replace('_', '-')}", *words])
    expected = {
        **dict(_leaves(asdict(POLICIES["byol_cifar10"]), "augment")),
        key: tuple(new) if isinstance(new, list) else new,
    }
    assert dict(_leaves(asdict(config.augment), "augment")) == expected
    nested: Any = new
    for name in reversed(key.split(".")):
        nested = {name: nested}
    given = yaml.safe_dump({"method": "simclr", "dataset": "shapes", "policy": "byol_cifar10", **nested})
    assert _read(given, tmp_path) == config
    assert _read(config.to_yaml(), tmp_path) == config


def test_a_key_without_a_view_is_about_all_views_and_for_the_mean_about_x_too() -> None:
    augment = _augment("--augment.crop.scale", "0.3", "0.9", "--augment.normalize.mean=0.1", "0.2", "0.3")
    assert [view.crop.scale for view in augment.views] == [(0.3, 0.9)] * 2
    assert {augment.x.normalize, *(view.normalize for view in augment.views)} == {
        Normalize((0.1, 0.2, 0.3), SHAPES.x.normalize.std)
    }


def test_a_setting_may_be_written_as_in_a_recipe() -> None:
    assert _augment("augment.views.1.jitter.hue=0.05").views[1].jitter.hue == 0.05
    assert _augment("augment.crop.scale=[0.3, 0.9]") == _augment("--augment.crop.scale", "0.3", "0.9")
    assert _augment("augment.blur=null") == _augment("--augment.blur", "None")
    assert _augment("--augment.blur.kernel_size", "3") == _augment("--augment.blur.kernel-size", "3")


def test_views_of_a_recipe_may_be_a_list(tmp_path: Path) -> None:
    text = "dataset: shapes\naugment: {views: [{jitter: {hue: 0.3}}, {blur: {p: 0.1}}], gray: {p: 0.4}}"
    views = _read(text, tmp_path).augment.views
    assert [(v.jitter.hue, v.blur.p, v.gray.p) for v in views] == [(0.3, 0.5, 0.4), (0.1, 0.1, 0.4)]


def test_an_operator_is_left_out_by_none_and_others_stay() -> None:
    augment = _augment("--augment.blur", "None")
    assert augment == replace(SHAPES, views=tuple(replace(view, blur=None) for view in SHAPES.views))


def test_an_operator_that_the_policy_lacks_begins_as_the_method_has_it() -> None:
    views = _augment("--policy", "barlow_twins_cifar10", "--augment.blur.p", "0.3").views
    assert [view.blur for view in views] == [GaussianBlur(5, 0.3, (0.1 / 7, 2 / 7))] * 2  # 23 and 2 pixels of 224
    views = _augment("--augment.views.1.solarize.threshold", "100").views
    assert [view.solarize for view in views] == [Solarize(0.0), Solarize(0.2, 100)]
    assert all(view.flip == HorizontalFlip() for view in _augment("--augment.flip.p", "0.5").views)


def test_an_operator_may_go_and_come_back_in_two_layers(tmp_path: Path) -> None:
    recipe = tmp_path / "gray.yaml"
    recipe.write_text("dataset: shapes\nmethod: simclr\naugment: {jitter: null}", encoding="utf-8")
    assert [view.jitter for view in parse(["--config", str(recipe)]).augment.views] == [None, None]
    views = parse(["--config", str(recipe), "--augment.jitter.hue", "0.1"]).augment.views
    assert [view.jitter for view in views] == [ColorJitter(0.8, 0.8, 0.8, 0.1)] * 2


def test_the_image_size_scales_the_policy() -> None:
    config = parse([*BASE, "--policy", "simclr_imagenet", "--image-size", "96"])
    assert config.augment == POLICIES["simclr_imagenet"].at(96)
    assert (config.augment.size, config.augment.x.resize, config.augment.views[0].blur.kernel_size) == (96, 110, 11)
    assert _augment("--image-size", "64") == SHAPES
    assert config.resolution_by_epoch().sizes == (96,)


def test_another_policy_or_size_over_a_recipe_keeps_what_it_does_not_concern(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("dataset: shapes\nimage_size: 48\naugment: {crop: {scale: [0.5, 1]}}", encoding="utf-8")
    words = ["--config", str(recipe)]
    assert parse([*words, "--policy", "byol_cifar10"]).augment == POLICIES["byol_cifar10"].at(48)
    assert parse([*words, "--image-size", "32"]).augment.views[0].crop.scale == (0.5, 1)
    assert parse([*words, "--image-size", "32"]).augment.size == 32


def test_a_whole_config_serves_as_recipe_for_another_size_and_policy(tmp_path: Path) -> None:
    config = parse([*BASE, "--augment.crop.scale", "0.5", "1"])
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    words = ["--config", str(tmp_path / "config.yaml")]
    assert parse([*words, "--image-size", "32"]).augment == config.augment.at(32)
    assert parse([*words, "--policy", "simclr_cifar10"]).augment == POLICIES["simclr_cifar10"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--augment.views.0.jiter.hue", "0.2"], "--augment.views.0.jitter.hue"),
        (["--augment.crop.scal", "0.2", "1"], "--augment.views.0.crop.scale"),
        (["--augment.views.2.crop.scale", "0.2", "1"], "--augment.views.2.crop.scale"),
        (["--augment.nothing", "1"], "augment.nothing"),
        (["--augment.jitter.hue", "0.7"], "at most 0.5 of the colour circle"),
        (["--augment.jitter.hue", "much"], "much"),
        (["--augment.crop.scale", "0.9", "0.2"], "smallest <= largest"),
        (["--augment.crop.scale", "0.9"], "scale"),
        (["--augment.blur.kernel-size", "4"], "odd number"),
        (["--augment.gray.p", "1.5"], "no probability"),
        (
            ["--augment.gray", "0.2"],
            "augment.gray holds settings of its own; give one of them, or None",
        ),
        (["--augment.crop.size", "32"], "must share one size"),
        (["--augment.normalize.std", "0", "1", "1"], "std=(0.0, 1.0, 1.0)"),
        (["--augment.views.0.blur", "None"], "augment.blur is part of some views alone"),
        (["--image-size", "0"], "image_size=0"),
        (["--image-size", "large"], "large"),
        (["--image-size", "32", "--resolution.start", "64"], "does not grow to 32 pixels"),
        (["--policy"], "--policy"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_2(options: list[str], text: str, tmp_path: Path) -> None:
    answer = call(main, *BASE, *options, "--output", str(tmp_path / "run"))
    assert answer.code == 2
    assert text in " ".join(answer.err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augment: 3", "augment holds settings of its own, not the value 3"),
        ("augment: {jitter: 3}", "augment.jitter holds settings of its own"),
        ("augment: {jitter: {hue: much}}", "augment.jitter.hue='much' is of the wrong type"),
        ("image_size: many", "image_size='many' is of the wrong type"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        _read(f"dataset: shapes\n{text}", tmp_path)


def test_a_given_mean_takes_the_place_of_a_measured_one(tmp_path: Path) -> None:
    (tmp_path / "measured.yaml").write_text("dataset: shapes\nnormalize: measured", encoding="utf-8")
    words = ["--config", str(tmp_path / "measured.yaml")]
    assert parse(words).normalize == "measured"
    assert parse([*words, "--augment.normalize.mean", "0.1", "0.2", "0.3"]).normalize == "given"


def test_other_augmentations_are_another_configuration_and_named_by_field() -> None:
    other = parse([*BASE, "--augment.views.1.jitter.hue", "0.2", "--augment.blur", "None"])
    base = parse(BASE)
    assert "augment.views.1.jitter.hue=0.2 (was 0.1)" in differences(other, base)
    assert any(said.startswith("augment.views.0.blur=None (was {") for said in differences(other, base))
    assert len(differences(other, base)) == 3
    measured, later = (
        replace(base, normalize="measured", augment=SHAPES.normalized(Normalize((mean,) * 3, (1.0,) * 3)))
        for mean in (0.0, 0.4)
    )
    assert differences(measured, later) == []
    assert len(differences(replace(measured, normalize="given"), replace(later, normalize="given"))) == 3


def test_the_evaluation_shows_x_as_the_training_does_but_for_cifar10() -> None:
    policy = POLICIES["simclr_imagenet"].at(96)
    assert evaluation_policy(policy, None).x == policy.x
    assert evaluation_policy(POLICIES["simclr_cifar10"], "cifar10").x.resize == 36
    view = evaluation_policy(policy, None).views[0]
    assert (view.crop.size, view.jitter, view.normalize) == (96, None, policy.x.normalize)
