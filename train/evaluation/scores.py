"""eval.json of a run: what evaluators found, by name, and in "evaluators" what each of them used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from equimod.pipelines.stored import DamagedFileError, decode_json, read_bytes
from equimod.train.config import ConfigError

EVAL = "eval.json"
INTERVAL = "_ci95"
"""What the name of half a 95 % interval ends in, behind that of its score."""


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
        content = read_bytes(path)
        decode_json(content, _Form, str(path))
        found: dict[str, Any] = decode_json(content, dict[str, str | int | float | dict[str, Any]], str(path))
    except DamagedFileError as error:
        raise ConfigError(f"{error}; remove it and evaluate again") from error
    return found
