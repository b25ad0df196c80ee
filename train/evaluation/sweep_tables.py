"""The tables of a result of tools/sweep.py: means over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from equimod.pipelines.policy import OPERATORS
from equimod.train.evaluation.summary import mean_and_deviation, size_of
from equimod.train.evaluation.table import Table

Columns = dict[str, tuple[str, int]]
"""Of a table: name in the result, title, and digits."""

SCORES: Columns = {
    "linear_top1": ("linear top-1, %", 2),
    "linear_cached_top1": ("linear top-1 on cached features, %", 2),
    "knn_top1": ("kNN top-1, %", 2),
    "absolute": ("absolute equivariance", 3),
    "relative": ("relative equivariance", 3),
}
EVALUATIONS: Columns = {
    "rankme": ("RankMe", 1),
    "lidar": ("LiDAR", 1),
    "few_shot_5way_1shot_top1": ("5-way 1-shot, %", 2),
    "few_shot_5way_5shot_top1": ("5-way 5-shot, %", 2),
    "transfer_top1": ("logistic regression top-1, %", 2),
    "robustness_top1": ("top-1 under corruptions, %", 2),
    "robustness_flip_rate_top1": ("changes of class under corruptions, %", 2),
    "fine_tune_1_top1": ("top-1 fine-tuned on 1 % of the labels, %", 2),
    "fine_tune_10_top1": ("top-1 fine-tuned on 10 %, %", 2),
    "fine_tune_100_top1": ("top-1 fine-tuned on all, %", 2),
}
_STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 2, 3, ... seeds; of more, the last one is on the safe side."""
_OPERATORS = ("crop", *OPERATORS)
_RANKS = {"retrieval_mrr": "MRR", "retrieval_hit1": "H@1", "retrieval_hit5": "H@5"}


def rows(result: dict[str, Any]) -> list[Table]:
    """Scores beside the paper's column, a row a setting. A score that no run has is left out."""
    found = [row for row in result["rows"] if row["runs"]]
    shown = measured(found, SCORES)
    cells = []
    for row in found:
        minutes = mean_and_deviation([run["seconds"] / 60 for run in row["runs"]], 1)
        paper = "–" if row["paper"] is None else f"{row['paper']:.2f}"
        cells.append([row["title"], *_means(row, shown), minutes, str(len(row["runs"])), paper])
    table = Table(["", *_titles(shown), "minutes", "seeds", "paper's linear top-1, %"], cells)
    accuracies = {key: column for key, column in shown.items() if key.endswith("top1")}
    return [table, *_differences(found, accuracies)]


def evaluation_rows(result: dict[str, Any]) -> list[Table]:
    """What representations are good for, a row a setting, of a result of `sweep.py evaluation` or `fine-tuning`."""
    found = [row for row in result["rows"] if row["runs"]]
    shown = measured(found, EVALUATIONS)
    cells = [[row["title"], *_means(row, shown), str(len(row["runs"]))] for row in found]
    return [Table(["", *_titles(shown), "seeds"], cells), *_differences(found, shown)]


def measured(rows: Sequence[dict[str, Any]], columns: Columns) -> Columns:
    """The columns that any run has a score of."""
    every = [run for row in rows for run in row["runs"]]
    return {name: column for name, column in columns.items() if any(score(run, name) is not None for run in every)}


def _titles(columns: Columns) -> list[str]:
    return [title for title, _ in columns.values()]


def _means(row: dict[str, Any], columns: Columns) -> list[str]:
    return [
        mean_and_deviation([score(run, name) for run in row["runs"]], digits) for name, (_, digits) in columns.items()
    ]


def score(run: Mapping[str, Any], name: str) -> float | None:
    """A score of a run by its name in `Columns`; None where it was not measured."""
    found: float | None = run[name] if name in run else run["eval"].get(name)
    return found


def paired(mine: Mapping[int, float], others: Mapping[int, float]) -> tuple[float, float, float]:
    """Mean of the differences of scores by seed, and the ends of its 95 % interval (Student); two seeds or more."""
    values = [mine[seed] - others[seed] for seed in mine.keys() & others.keys()]
    mean, half = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    half *= _STUDENT_95[min(len(values), len(_STUDENT_95) + 1) - 2]
    return mean, mean - half, mean + half


def _differences(rows: Sequence[dict[str, Any]], columns: Columns) -> list[Table]:
    """What each row has more than the first one of its method without EquiMod, or else than the first of all, over the
    seeds of both; EquiMod with no option more than every one without. Empty where none has two seeds."""
    cells = []
    for row, base in [(mine, other) for mine in rows for other in _bases(mine, rows)]:
        seeds = {run["seed"] for run in row["runs"]} & {run["seed"] for run in base["runs"]}
        if row is not base and len(seeds) > 1:
            title = f"{row['title']}, less {base['title']}"
            found = [_difference(row["runs"], base["runs"], name, digits) for name, (_, digits) in columns.items()]
            cells.append([title, *found, str(len(seeds))])
    titles = [title.removesuffix(", %") for title in _titles(columns)]
    return [Table(["difference (95 % interval)", *titles, "seeds"], cells)] if cells else []


def _bases(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The rows that a row is compared with."""
    method = row["runs"][0]["method"]
    plain = [r for r in rows if r["runs"][0]["method"] == method and not r["runs"][0]["equimod"]] or rows[:1]
    is_default = row["runs"][0]["equimod"] and not row.get("options")
    return plain if is_default else plain[:1]


def _difference(mine: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], name: str, digits: int) -> str:
    by_seed = [
        {run["seed"]: value for run in runs if (value := score(run, name)) is not None} for runs in (mine, others)
    ]
    if len(by_seed[0].keys() & by_seed[1].keys()) < 2:
        return "–"
    mean, low, high = paired(*by_seed)
    doubt = ", not significant" if low <= 0 <= high else ""
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}){doubt}"


def caption(result: dict[str, Any]) -> str:
    """What stands under `rows`."""
    found = [row["runs"] for row in result["rows"] if row["runs"]]
    every = [run for runs in found for run in runs]
    means = " Means ± standard deviation over the seeds." if len(every) > len(found) else ""
    sizes = {size_of(run) for run in every}
    return (
        f"{'; '.join(sorted(sizes))}; the paper's column is ResNet-18, 800 epochs.{means} Minutes are those of "
        "training."
    )


def figure_rows(result: dict[str, Any]) -> list[Table]:
    """What is known of each operator's parameters, of a result of `sweep.py figures`."""

    def cells(row: dict[str, Any], names: Sequence[str], digits: int) -> list[str]:
        found = [run["eval"] for run in row["runs"]]
        return [mean_and_deviation([scores.get(name) for scores in found], digits) for name in names]

    operators = operators_of(result)
    measured_ranks = {**_RANKS, **({"retrieval_pre": "PRE"} if "retrieval_pre" in _every_score(result) else {})}
    equimod = [row for row in result["rows"] if any(run["equimod"] for run in row["runs"])]
    of_equimod = []
    for form, digits in (("absolute", 3), ("relative", 2)):
        names = [f"equivariance_{form}_{operator}" for operator in operators]
        of_equimod += [[f"{row['title']}, {form}", *cells(row, names, digits)] for row in equimod]
    ranks = [[row["title"], *cells(row, list(measured_ranks), 3)] for row in equimod]
    readout = [f"readout_r2_{operator}" for operator in _OPERATORS]
    recovered = [[row["title"], *cells(row, readout, 3)] for row in result["rows"] if row["runs"]]
    return [
        Table(["equivariance of an operator alone", *operators], of_equimod),
        Table(["R2 of a linear read-out from h", *_OPERATORS], recovered),
        Table(["ranks of the true view among 16", *measured_ranks.values()], ranks),
    ]


def operators_of(result: dict[str, Any]) -> list[str]:
    """What `figure_rows` has a column of: results of before do not have the identity."""
    return [*_OPERATORS, *(["identity"] if "equivariance_absolute_identity" in _every_score(result) else [])]


def _every_score(result: dict[str, Any]) -> set[str]:
    return {name for row in result["rows"] for run in row["runs"] for name in run["eval"]}
