"""The command line of a training: a recipe, with the options of the command line on top."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import tyro

from equimod.models.settings import ConfigError
from equimod.train.config.recipes import default_recipe, read_with_parent, without_unused
from equimod.train.config.settings import Config


def parse(argv: Sequence[str]) -> Config:
    """The configuration that a command line asks for.

    Raises ConfigError; exits 2 through tyro, with a hint, for options it does not know and 0 for --help.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--method")
    first.add_argument("--dataset", default=Config.dataset)
    first.add_argument("--equimod", action="store_true")
    chosen, _ = first.parse_known_args(argv)
    if chosen.config is None and chosen.method is None:
        with suppress(ConfigError):  # of settings that go together with a method's only
            tyro.cli(Config, args=list(argv), description=Config.__doc__)  # a misspelt option has its hint first
        raise ConfigError("--method is missing; give --method simclr, or --config FILE")
    path = chosen.config or default_recipe(chosen.method or Config.method, chosen.dataset, chosen.equimod)
    recipe, parent = read_with_parent(path) if path else (Config(), Config())
    config: Config = tyro.cli(Config, args=list(argv), default=recipe, description=Config.__doc__)
    config = without_unused(config, recipe if recipe.equimod else parent, recipe, path)
    config.require_complete()
    return config
