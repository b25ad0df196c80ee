"""The tables of a result of tools/sweep.py: means over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from equimod.pipelines.policy import OPERATORS
from equimod.train.evaluation.summary import mean_and_deviation, size_of
from equimod.train.evaluation.table import Table

SCORE_COLUMNS = {  # name in the result: title and digits
    "linear_top1": ("linear top-1, %", 2),
    "linear_cached_top1": ("linear top-1 on cached features, %", 2),
    "knn_top1": ("kNN top-1, %", 2),
    "absolute": ("absolute equivariance", 3),
    "relative": ("relative equivariance", 3),
}
_OPERATORS = ("crop", *OPERATORS)
_RANKS = {"retrieval_mrr": "MRR", "retrieval_hit1": "H@1", "retrieval_hit5": "H@5"}


def rows(result: dict[str, Any]) -> list[Table]:
    """Scores beside the paper's column, a row a setting. A score that no run has is left out."""
    found = [row for row in result["rows"] if row["runs"]]
    every = [run for row in found for run in row["runs"]]
    measured = {key: score for key, score in SCORE_COLUMNS.items() if any(run[key] is not None for run in every)}
    cells = []
    for row in found:
        runs = row["runs"]
        scores = [mean_and_deviation([run[key] for run in runs], digits) for key, (_, digits) in measured.items()]
        minutes = mean_and_deviation([run["seconds"] / 60 for run in runs], 1)
        paper = "–" if row["paper"] is None else f"{row['paper']:.2f}"
        cells.append([row["title"], *scores, minutes, str(len(runs)), paper])
    titles = [title for title, _ in measured.values()]
    return [Table(["", *titles, "minutes", "seeds", "paper's linear top-1, %"], cells)]


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

    equimod = [row for row in result["rows"] if any(run["equimod"] for run in row["runs"])]
    of_equimod = []
    for form, digits in (("absolute", 3), ("relative", 2)):
        names = [f"equivariance_{form}_{operator}" for operator in _OPERATORS]
        of_equimod += [[f"{row['title']}, {form}", *cells(row, names, digits)] for row in equimod]
    ranks = [[row["title"], *cells(row, list(_RANKS), 3)] for row in equimod]
    readout = [f"readout_r2_{operator}" for operator in _OPERATORS]
    recovered = [[row["title"], *cells(row, readout, 3)] for row in result["rows"] if row["runs"]]
    return [
        Table(["equivariance of an operator alone", *_OPERATORS], of_equimod),
        Table(["R2 of a linear read-out from h", *_OPERATORS], recovered),
        Table(["ranks of the true view among 16", *_RANKS.values()], ranks),
    ]


def figure_caption(result: dict[str, Any]) -> str:
    """What stands under `figure_rows`."""
    seeds = max(len(row["runs"]) for row in result["rows"])
    return f"Means ± standard deviation over {seeds} seed(s), on the test images."
