"""Runs beside one another: what their representations tell of the class, and of everything else that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from equimod.train.config import Config, differences
from equimod.train.evaluation.summary import mean_and_deviation, size_of
from equimod.train.evaluation.table import Table

ACCURACIES = {
    "linear_top1": "linear top-1",
    "linear_cached_top1": "linear top-1 on cached features",
    "knn_top1": "kNN top-1",
}
"""Scores of the class in percent: name in eval.json, and what it is called."""
FACTOR = "factors_r2_"
"""What the names of the other read-outs begin with."""
_EQUIVARIANCES = {"equivariance_absolute": "absolute equivariance", "equivariance_relative": "relative equivariance"}

Settings = dict[str, list[dict[str, Any]]]
"""The runs, as `summary.summary` makes them, of every setting by its title."""


def by_settings(runs: Mapping[Path, Config]) -> dict[str, list[Path]]:
    """The folders of runs that differ in their seed alone, by what they are called: their method, or the first of the
    folders where several have the same."""
    groups: list[tuple[Config, list[Path]]] = []
    for run, config in runs.items():
        seedless = replace(config, seed=0)
        alike = next((paths for other, paths in groups if not differences(seedless, other)), None)
        if alike is None:
            groups.append((seedless, [run]))
        else:
            alike.append(run)
    titles = [config.title for config, _ in groups]
    return {
        title if titles.count(title) == 1 else str(paths[0]): paths
        for title, (_, paths) in zip(titles, groups, strict=True)
    }


def settings_of(result: dict[str, Any]) -> Settings:
    """Those of a result that holds `rows`, each with its `title` and its `runs`."""
    return {row["title"]: row["runs"] for row in result["rows"] if row["runs"]}


def measured(settings: Settings) -> list[str]:
    """Names in eval.json of the scores that any run has, in the order of a table: class, factors, equivariance."""
    return in_order(name for runs in settings.values() for run in runs for name in run["eval"])


def in_order(names: Iterable[str]) -> list[str]:
    """Those of the names of scores that tables show, each once, in the order of a table."""
    found = list(dict.fromkeys(names))
    factors = [name for name in found if name.startswith(FACTOR)]
    return [*(n for n in ACCURACIES if n in found), *factors, *(n for n in _EQUIVARIANCES if n in found)]


def factor_title(name: str) -> str:
    """`factors_r2_background_hue` as "background hue"."""
    return name.removeprefix(FACTOR).replace("_", " ")


def rows(result: dict[str, Any]) -> list[Table]:
    """A row a measure and a column a setting, with the mean over its seeds, of a result as in `settings_of`."""
    settings = settings_of(result)
    cells = []
    for name in measured(settings):
        scores = [[run["eval"].get(name) for run in runs] for runs in settings.values()]
        cells.append([title(name), *(mean_and_deviation(of, 1 if name in ACCURACIES else 3) for of in scores)])
    minutes = [mean_and_deviation([run["seconds"] / 60 for run in runs], 1) for runs in settings.values()]
    return [Table(["", *settings], [*cells, ["minutes of training", *minutes]])]


def caption(result: dict[str, Any]) -> str:
    """What stands in a document under the tables of a result that holds `rows`."""
    every = [run for runs in settings_of(result).values() for run in runs]
    sizes = {size_of(run) for run in every}
    seeds = len({run["seed"] for run in every})
    of_seeds = f"Means ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    return f"{'; '.join(sorted(sizes))}. {of_seeds}, on the test images."


def title(name: str) -> str:
    """What a score is called in a table."""
    if (accuracy := ACCURACIES.get(name.replace("_top5", "_top1"))) is not None:
        return f"class, {accuracy.replace('top-1', 'top-5') if name.endswith('_top5') else accuracy}, %"
    return _EQUIVARIANCES.get(name, f"{factor_title(name)}, R2")
