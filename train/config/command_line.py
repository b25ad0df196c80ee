"""The command line of a training: a recipe, with the options of the command line on top."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from equimod.models.settings import ConfigError
from equimod.train.config.augment import is_field
from equimod.train.config.following import with_following
from equimod.train.config.own_images import has_gpu, look_at, settings_for
from equimod.train.config.recipes import (
    RECIPES,
    as_options,
    default_recipe,
    named_recipe,
    read_options,
    read_with_parent,
    without_unused,
)
from equimod.train.config.settings import Config


def parse(argv: Sequence[str], say: Callable[[str], None] = lambda line: None) -> Config:
    """The configuration that a command line asks for; a setting may be written as in a recipe too, `optim.lr=3`.

    `say` is told the settings that follow from the number of images, where they are one's own. Raises ConfigError,
    RecordsError for images that cannot be read; exits 2 through tyro, with a hint, for options it does not know and 0
    for --help.
    """
    argv = [option for word in argv for option in _as_options(word)]
    chosen = _chosen(argv)
    own = chosen.dataset is None and chosen.data is not None
    unnamed = chosen.config is None and chosen.method is None
    if unnamed and not own:
        with suppress(ConfigError):  # of settings that go together with a method's only
            read_options(argv, Config())  # a misspelt option has its hint first
        raise ConfigError("--method is missing; give --method simclr, --config RECIPE, or --data IMAGES alone")
    if chosen.config is not None:
        path: Path | None = named_recipe(chosen.config)
    else:
        dataset = None if own else chosen.dataset or "shapes"
        path = default_recipe(chosen.method or Config.method, dataset, chosen.equimod)
    recipe, parent = read_with_parent(path) if path else (Config(), Config())
    if unnamed:
        recipe = replace(recipe, equimod=True)
    if own and path is not None and path.parent == RECIPES and recipe.dataset is None and not chosen.help:
        recipe = _fitted(recipe, argv, chosen, say)
    config = read_options(argv, recipe)
    config = without_unused(config, recipe if recipe.equimod else parent, recipe, path)
    config.require_complete()
    return config


def _chosen(argv: Sequence[str]) -> argparse.Namespace:
    """The options that decide which settings the others are put on. tyro, which reads them again, has the errors."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--method", "--labels", "--batch-size", "--epochs"):
        first.add_argument(name, nargs="?")
    first.add_argument("--system.device", dest="device", nargs="?")
    first.add_argument("--encoder.weights", dest="weights", nargs="?", type=_unless_none)
    first.add_argument("--dataset", nargs="?", type=_unless_none)
    first.add_argument("--data", nargs="*", type=Path)
    first.add_argument("--config", "--recipe", nargs="?", type=Path)
    first.add_argument("--equimod", action="store_true")
    first.add_argument("--help", "-h", action="store_true")
    chosen, _ = first.parse_known_args([_with_hyphens(word) for word in argv])
    chosen.data = None if chosen.data in ([], [Path("None")]) else chosen.data
    return chosen


def _unless_none(value: str) -> str | None:
    return None if value == "None" else value


def _with_hyphens(word: str) -> str:
    """An option as --help has it, of which tyro takes --batch_size too."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _fitted(recipe: Config, argv: Sequence[str], chosen: argparse.Namespace, say: Callable[[str], None]) -> Config:
    """The recipe with the settings that follow from the number and the sizes of the images, and what is given."""
    with suppress(ConfigError):  # of settings that fit those that follow
        read_options(argv, recipe)  # a misspelt option has its hint before any image is looked at
    images = look_at(chosen.data, chosen.labels if chosen.labels in ("folder", "none") else "auto")
    batch_size, epochs = (
        int(given) if str(given).isdecimal() else None for given in (chosen.batch_size, chosen.epochs)
    )
    gpu = has_gpu(chosen.device)
    given_weights = (chosen.weights or recipe.encoder.weights) is not None
    settings = settings_for(
        images, gpu=gpu, lr=recipe.optim.lr, batch_size=batch_size, epochs=epochs, given_weights=given_weights
    )
    fitted = read_options([word for key, value in settings.items() for word in as_options(key, value)], recipe)
    encoder, optim = with_following(fitted, argv)
    if encoder.timm_name is not None:
        settings = {key: value for key, value in settings.items() if not key.startswith("encoder.")}
    if optim.name != fitted.optim.name:
        settings |= {"optim.name": optim.name, "optim.lr": optim.lr, "optim.weight_decay": optim.weight_decay}
    said = " ".join(f"{key}={value}" for key, value in settings.items())
    where = "a GPU" if gpu else "a CPU"
    say(f"{images.count:,} images of {images.side} pixels, on {where}: {said}, where no others are given")
    return fitted


def _as_options(word: str) -> list[str]:
    """`key=value` as options where the key is a setting; any other word as it is."""
    key, equals, value = word.partition("=")
    if not equals or not (_is_setting(key) or is_field(key)):
        return [word]
    try:
        return as_options(key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"{word}: the value is not YAML; write it as a recipe does") from error


def _is_setting(key: str) -> bool:
    settings: Any = Config()
    for name in key.split("."):
        if not is_dataclass(settings) or name not in {field.name for field in fields(settings)}:
            return False
        settings = getattr(settings, name)
    return not is_dataclass(settings)
