"""What a finished run amounts to: its settings, its scores, and the time it took, as one JSON object."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from equimod.train.config import ConfigError, read_run
from equimod.train.evaluation.scores import EVAL, read_scores
from equimod.train.report import read_events

SCORES = {
    "linear_top1": "linear_top1",  # percent, as every accuracy
    "linear_cached_top1": "linear_cached_top1",
    "knn_top1": "knn_top1",
    "absolute": "equivariance_absolute",
    "relative": "equivariance_relative",
}
"""Name here to name in eval.json."""

_OF_THE_MACHINE = ("data", "val", "output", "config")


def summary(folder: Path) -> dict[str, Any]:
    """Settings from the run's config.yaml, scores from its eval.json, duration and data wait from its metrics.jsonl.

    A score that was not measured is None. Raises ConfigError or OSError where a file of the run is missing.
    """
    config = read_run(folder)
    scores = read_scores(folder)
    if not scores.get("evaluators"):
        raise ConfigError(f"{folder} has no {EVAL}; run equimod evaluate {folder} first")
    seconds, waited = training_seconds(read_events(folder / "metrics.jsonl"), config.batch_size)
    settings = {key: value for key, value in yaml.safe_load(config.to_yaml()).items() if key not in _OF_THE_MACHINE}
    return {
        "method": config.method,
        "equimod": config.equimod,
        "arch": config.encoder.arch,
        "width": config.encoder.width,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "images": next(iter(scores["evaluators"].values()))["train_images"],
        "seed": config.seed,
        **{name: scores.get(key) for name, key in SCORES.items()},
        # All of them, under their own names.
        "eval": {name: value for name, value in scores.items() if isinstance(value, float)},
        "seconds": round(seconds, 1),
        "data_wait": round(waited / seconds, 4) if seconds else None,  # share of these seconds
        "config": settings,
    }


def size_of(run: Mapping[str, Any]) -> str:
    """What a run of `summary` trained and for how long, for people."""
    width = f" width {run['width']}" if run["width"] else ""  # which models of timm do not have
    return f"{run['arch']}{width}, {run['epochs']} epochs of {run['images']:,} images"


def mean_and_deviation(values: Sequence[float | None], digits: int) -> str:
    """The mean over seeds with its standard deviation where there are several; a dash where one is missing, or all."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def training_seconds(events: Sequence[dict[str, Any]], batch_size: int) -> tuple[float, float]:
    """Time that the logged steps took, and how much of it they waited for data.

    Pauses between a stop and its resume do not count.
    """
    steps = [{"step": 0}, *(event for event in events if event["event"] == "step")]
    images = [batch_size * (after["step"] - before["step"]) for before, after in pairwise(steps)]
    rates = [event["images_per_s"] for event in steps[1:]]
    seconds = [n / rate if rate else 0.0 for n, rate in zip(images, rates, strict=True)]
    return sum(seconds), sum(s * event["data_wait"] for s, event in zip(seconds, steps[1:], strict=True))
