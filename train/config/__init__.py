"""The typed configuration of a run: settings, recipes (YAML), and the command line on top of them.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

from equimod.models.settings import ConfigError
from equimod.train.config.command_line import parse
from equimod.train.config.differences import differences
from equimod.train.config.recipes import CONFIG, RECIPE, RECIPES, default_recipe, is_run, read_recipe, read_run, silence
from equimod.train.config.settings import (
    SEEDS,
    Config,
    SystemSettings,
)

__all__ = [
    "CONFIG",
    "RECIPE",
    "RECIPES",
    "SEEDS",
    "Config",
    "ConfigError",
    "SystemSettings",
    "default_recipe",
    "differences",
    "is_run",
    "parse",
    "read_recipe",
    "read_run",
    "silence",
]
