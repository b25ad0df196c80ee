"""Recipes and command lines: the paper's numbers, one parser for both, and errors that name key, value and remedy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from equimod.train.config import RECIPES, Config, ConfigError, default_recipe, differences, parse, read_recipe

ROOT = Path(__file__).parent.parent


def test_the_recipes_hold_the_papers_settings() -> None:
    for equimod, lr in ((False, 4.8), (True, 2.4)):
        recipe = default_recipe("simclr", "imagenet", equimod)
        assert recipe is not None
        config = read_recipe(recipe)
        assert (config.equimod, config.optim.lr, config.batch_size, config.epochs) == (equimod, lr, 4096, 800)
        assert (config.encoder.arch, config.encoder.stem, config.encoder.width) == ("resnet50", "imagenet", 64)
        assert (config.simclr.temperature, config.equivariance.temperature) == (0.2, 0.2)
        assert (config.optim.weight_decay, config.optim.momentum, config.optim.warmup_epochs) == (1e-6, 0.9, 10)
    for equimod in (False, True):
        config = parse(["--method", "simclr", "--dataset", "cifar10", *(["--equimod"] if equimod else [])])
        assert (config.equimod, config.optim.lr, config.batch_size, config.epochs) == (equimod, 4.0, 512, 800)
        assert (config.encoder.arch, config.encoder.stem) == ("resnet18", "cifar")
        assert (config.simclr.temperature, config.equivariance.temperature, config.equivariance.weight) == (0.5, 0.2, 1)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_survives_its_own_yaml(recipe: Path, tmp_path: Path) -> None:
    config = read_recipe(recipe)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "config.yaml") == config


def test_none_and_empty_lists_survive_yaml(tmp_path: Path) -> None:
    config = parse(
        ["--method", "simclr", "--equimod", "--equivariance.projector", "None", "--equivariance.predictor-hidden", "16"]
    )
    assert config.equivariance.projector is None
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "config.yaml") == config


def test_options_go_over_the_recipe() -> None:
    config = parse(["--method", "simclr", "--dataset", "cifar10", "--optim.lr", "1.5", "--batch-size", "64"])
    assert (config.optim.lr, config.batch_size, config.optim.momentum) == (1.5, 64, 0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", r"no setting is called epoch \(did you mean epochs\?\)"),
        ("optim: {lrr: 3}", r"no setting is called optim.lrr \(did you mean optim.lr\?|lr\?\)"),
        ("optim: 3", "optim holds settings of its own"),
        ("epochs: many", "correct it in this file"),
        ("- 1", "`key: value`"),
        ("a: [", "not YAML"),
        ("extends: other.yaml", "cannot read"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(recipe)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--method is missing"),
        ("--method simclr --dataset imagenet", "tools/convert_imagenet.py"),
        ("--method simclr --policy simclr_cifar", "did you mean simclr_cifar10"),
        ("--method simclr --equivariance.weight 2", "equivariance.weight=2.0 has no effect without EquiMod"),
        ("--method simclr --epochs 2 --optim.warmup-epochs 5", "warmup_epochs=5.0 is not shorter than epochs=2"),
        ("--method simclr --resume auto --overwrite", "contradict"),
        ("--method simclr --batch-size 1", "batch_size=1 is too small"),
        ("--method simclr --optim.lr 0", "optim.lr=0.0 must be positive"),
        ("--method simclr --optim.momentum 1", "optim.momentum=1.0"),
        ("--config nowhere.yaml", "cannot read nowhere.yaml"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_remedy(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(options.split())


def test_only_settings_that_change_the_result_count_as_another_configuration() -> None:
    base = ["--method", "simclr"]
    same = parse([*base, "--output", "elsewhere", "--log.every", "3", "--system.workers", "4"])
    assert differences(same, parse(base)) == []
    other = parse([*base, "--optim.lr", "3", "--seed", "5"])
    assert differences(other, parse(base)) == ["seed=5 (was 0)", "optim.lr=3.0 (was 2.0)"]


def _main(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(ROOT / "train" / "main.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_is_answered_without_importing_torch() -> None:
    answer = _main("--help")
    assert answer.returncode == 0
    assert "--equimod" in answer.stdout
    assert "equimod.train.config" in answer.stderr
    assert not re.search(r"\|\s+torch$", answer.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--method", "simclr", "--bach-size", "3"], "--batch-size"), (["--method", "byoll"], "simclr"), ([], "--method")],
)
def test_a_wrong_command_line_exits_2_with_a_hint(options: list[str], text: str) -> None:
    answer = _main(*options)
    assert answer.returncode == 2
    assert text in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_default_output_names_method_and_data_set() -> None:
    assert Config(equimod=True).run_folder() == Path("runs/simclr-equimod-shapes")
