"""Gather evaluated CIFAR-10 runs into one result: python benchmarks/collect.py OUTPUT.json RUN_DIR RUN_DIR ...

Settings come from each run's config.yaml, scores from its eval.json, duration and data wait from its metrics.jsonl.
Run it on the machine that trained: the result says which one that was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from equimod.pipelines.durable import durable_file
from equimod.train.config import ConfigError, read_recipe
from equimod.train.report import read_events

SCORES = {
    "linear_top1": "linear_top1",  # percent, as every accuracy
    "linear_cached_top1": "linear_cached_top1",
    "knn_top1": "knn_top1",
    "absolute": "equivariance_absolute",
    "relative": "equivariance_relative",
}
"""Name here to name in eval.json."""


@dataclass(frozen=True)
class Arguments:
    """Gather evaluated runs into one result for the README."""

    output: tyro.conf.Positional[Path]
    """JSON file for the result."""
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs on which train/evaluate.py has been run."""


def collect(folder: Path) -> dict[str, Any]:
    """Settings, scores, duration and data wait of one run. A score that was not measured is None.

    Raises ConfigError or OSError where a file of the run is missing.
    """
    config = read_recipe(folder / "config.yaml")
    if not (folder / "eval.json").is_file():
        raise ConfigError(f"{folder} has no eval.json; run python train/evaluate.py {folder} first")
    scores = json.loads((folder / "eval.json").read_bytes())
    seconds, waited = _training_seconds(read_events(folder / "metrics.jsonl"), config.batch_size)
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
        "seconds": round(seconds, 1),
        "data_wait": round(waited / seconds, 4) if seconds else None,  # share of these seconds
    }


def _training_seconds(events: Sequence[dict[str, Any]], batch_size: int) -> tuple[float, float]:
    """Time that the logged steps took, and how much of it they waited for data.

    Pauses between a stop and its resume do not count.
    """
    steps = [{"step": 0}, *(event for event in events if event["event"] == "step")]
    images = [batch_size * (after["step"] - before["step"]) for before, after in pairwise(steps)]
    seconds = [n / event["images_per_s"] for n, event in zip(images, steps[1:], strict=True)]
    return sum(seconds), sum(s * event["data_wait"] for s, event in zip(seconds, steps[1:], strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = tyro.cli(Arguments, args=given, prog="collect.py", description=__doc__)
    from equimod.benchmarks.provenance import provenance

    try:
        result = {
            **provenance("benchmarks/collect.py", given),
            "benchmark": "cifar10",
            "runs": [collect(folder) for folder in arguments.runs],
        }
        with durable_file(arguments.output) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
