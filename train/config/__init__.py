"""The typed configuration of a run: settings, recipes (YAML), and the command line on top of them.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

from equimod.train.config.command_line import parse
from equimod.train.config.recipes import RECIPES, default_recipe, read_recipe, silence
from equimod.train.config.settings import (
    METHODS,
    SEEDS,
    Config,
    ConfigError,
    Method,
    SystemSettings,
    check,
    differences,
)

__all__ = [
    "METHODS",
    "RECIPES",
    "SEEDS",
    "Config",
    "ConfigError",
    "Method",
    "SystemSettings",
    "check",
    "default_recipe",
    "differences",
    "parse",
    "read_recipe",
    "silence",
]
