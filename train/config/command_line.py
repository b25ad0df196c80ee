"""The command line of a training: a recipe, with the options of the command line on top."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from equimod.models.settings import ConfigError
from equimod.train.config.recipes import as_options, default_recipe, named_recipe, read_with_parent, without_unused
from equimod.train.config.settings import Config


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line asks for; a setting may be written as in a recipe too, `optim.lr=3`.

    Raises ConfigError; exits 2 through tyro, with a hint, for options it does not know and 0 for --help.
    """
    argv = [word for given in argv for word in _as_options(given)]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--method")
    first.add_argument("--dataset", default=Config.dataset)
    first.add_argument("--equimod", action="store_true")
    chosen, _ = first.parse_known_args(argv)
    if chosen.config is None and chosen.method is None:
        with suppress(ConfigError):  # of settings that go together with a method's only
            tyro.cli(Config, args=list(argv), description=Config.__doc__)  # a misspelt option has its hint first
        raise ConfigError("--method is missing; give --method simclr, or --config RECIPE")
    path = (
        named_recipe(chosen.config)
        if chosen.config
        else default_recipe(chosen.method or Config.method, chosen.dataset, chosen.equimod)
    )
    recipe, parent = read_with_parent(path) if path else (Config(), Config())
    config: Config = tyro.cli(Config, args=list(argv), default=recipe, description=Config.__doc__)
    config = without_unused(config, recipe if recipe.equimod else parent, recipe, path)
    config.require_complete()
    return config


def _as_options(word: str) -> list[str]:
    """`key=value` as options where the key is a setting; any other word as it is."""
    key, equals, value = word.partition("=")
    if not equals or not _is_setting(key):
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
