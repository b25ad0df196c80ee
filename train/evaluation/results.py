"""Running evaluators on a run, and eval.json, which keeps what they find."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import spaced
from equimod.pipelines.progress import say
from equimod.train.evaluation import EVALUATORS, figures, load
from equimod.train.evaluation.scores import EVAL, read_scores
from equimod.train.evaluation.trained_run import TrainedRun


def evaluate(trained: TrainedRun, names: Sequence[str]) -> None:
    """Run evaluators and print and keep in eval.json what they find, each as soon as it is done.

    Of several ranks, all make features and run the evaluators that are shared; then the first runs the others. Raises
    ConfigError where eval.json is damaged.
    """
    read_scores(trained.output)  # rather before the work than after it
    shared, is_first = trained.dist_info.world_size > 1, trained.dist_info.rank == 0
    if shared:
        _ = trained.train_blocks, trained.val_blocks
        names = [name for name in names if EVALUATORS[name].over_ranks or is_first]
        names.sort(key=lambda name: not EVALUATORS[name].over_ranks)
    for name in names:
        began, evaluator = time.perf_counter(), load(name)
        found = dict(evaluator.run(trained))
        if not is_first:
            continue
        values = {key: value for key, value in found.items() if math.isfinite(value)}
        used = {
            **evaluator.SETTINGS,
            "seed": trained.seed,
            "train": spaced(trained.config.data or ()),
            "train_images": len(trained.train),
            "val": spaced(trained.config.val or ()),
            "val_images": len(trained.val),
            "seconds": round(time.perf_counter() - began, 2),
        }
        _keep(trained, name, values, used)
        told = [f"{key} {value}" for key, value in evaluator.SETTINGS.items() if isinstance(value, int | float)]
        print(" ".join([f"{name.replace('_', '-')}:", ", ".join(told)]).rstrip(), flush=True)
        if lacking := found.keys() - values.keys():
            say(f"no number of these images, and left out: {', '.join(sorted(lacking))}")
        for key, value in values.items():
            number = f"{value:.3f}" if abs(value) >= 0.001 or not value else f"{value:.1e}"
            print(f"{key:<40}{number:>10}{' %' if '_top' in key else ''}", flush=True)


def draw_figures(trained: TrainedRun) -> None:
    """Draw loss.png, views.png and, once it is measured, equivariance.png into the run's figures/."""
    config, folder = trained.config, trained.output / "figures"
    figures.draw_losses(trained.folder / "metrics.jsonl", folder / "loss.png", f"{config.title} on {config.data_name}")
    figures.draw_views(
        trained.train, trained.policy, folder / "views.png", seed=config.seed, window=config.shuffle_window
    )
    drawn = [folder / "loss.png", folder / "views.png"]
    found = read_scores(trained.output)
    if found.get("weights") == trained.identity["weights"] and "equivariance_per_operator" in found["evaluators"]:
        drawn.append(folder / "equivariance.png")
        figures.draw_equivariance(found, drawn[-1], f"{config.title} on {config.data_name}")
    say(f"figures: {', '.join(map(str, drawn))}")


def _keep(trained: TrainedRun, name: str, values: dict[str, float], used: dict[str, Any]) -> None:
    """Merge results into eval.json; results of another checkpoint are dropped from it."""
    found = read_scores(trained.output)
    if found.get("weights") != trained.identity["weights"]:
        found = {}
    evaluators = {**found.pop("evaluators", {}), name: used}
    trained.output.mkdir(parents=True, exist_ok=True)
    with durable_file(trained.output / EVAL) as out:
        out.write(json.dumps({**found, **trained.identity, **values, "evaluators": evaluators}, indent=2).encode())
