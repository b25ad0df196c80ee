"""eval.json of a run: what evaluators found, by name, and in "evaluators" what each of them used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from equimod.pipelines.stored import DamagedFileError, read_json
from equimod.train.config import ConfigError

EVAL = "eval.json"


class _Used(msgspec.Struct):
    train_images: int
    val: str


class _Form(msgspec.Struct):
    weights: str  # digest of the checkpoint
    evaluators: dict[str, _Used]


def read_scores(folder: Path) -> dict[str, Any]:
    """eval.json of the run in `folder`; empty where it was not evaluated. Raises ConfigError where it is damaged."""
    path = folder / EVAL
    if not path.exists():
        return {}
    try:
        read_json(path, _Form)
        found: dict[str, Any] = read_json(path, dict[str, str | int | float | dict[str, Any]])
    except DamagedFileError as error:
        raise ConfigError(f"{error}; remove it and evaluate again") from error
    return found
