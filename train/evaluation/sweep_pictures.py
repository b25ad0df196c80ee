"""The picture of a result of tools/sweep.py, as PNG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from equimod.train.evaluation.comparison import settings_of
from equimod.train.evaluation.figures import (
    COLORS,
    INVARIANCE,
    OperatorBars,
    bars_of_run,
    draw_comparison,
    draw_operator_bars,
    save,
)
from equimod.train.evaluation.sweep_tables import EVALUATIONS, SCORES, Columns, measured, operators_of, score

_PANELS = 5  # beside one another, at most


def draw(table: str, result: dict[str, Any], path: Path) -> None:
    """Draw what a sweep of `table` found, durably. OSError where it cannot be written."""
    match table:
        case "figures":
            _draw_operators(result, path)
        case "evaluation" | "fine-tuning":
            _draw_scores(result, EVALUATIONS, path)
        case "demo":
            draw_comparison(settings_of(result), path, result["title"])
        case _:
            _draw_scores(result, SCORES, path)


def _draw_scores(result: dict[str, Any], columns: Columns, path: Path) -> None:
    """A panel a score, a line of it a row."""
    rows = [row for row in result["rows"] if row["runs"]]
    shown = measured(rows, columns)
    across = min(len(shown), _PANELS)
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(2.8 + 1.9 * across, (1.1 + 0.28 * len(rows)) * down), layout="constrained")
    figure.suptitle(result["title"])
    panels = iter(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for (name, (title, _)), axes in zip(shown.items(), panels, strict=False):
        for place, row in enumerate(rows):
            found = [value for run in row["runs"] if (value := score(run, name)) is not None]
            color = "tab:blue" if row["runs"][0]["equimod"] else "tab:gray"
            axes.plot(found, [place] * len(found), ls="", marker="o", ms=4, alpha=0.6, color=color)
            if found:
                axes.plot(statistics.mean(found), place, ls="", marker="|", ms=14, mew=2, color=color)
        axes.set_title(title.replace(" on ", "\non ").replace(" under ", "\nunder "), fontsize=9)
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.1)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels:
        axes.axis("off")
    figure.supxlabel("a dot is a seed, a line their mean; blue with EquiMod, gray without", fontsize=9)
    save(figure, path)


def _draw_operators(result: dict[str, Any], path: Path) -> None:
    """Equivariance to each operator alone, a bar a row with EquiMod."""
    rows = [row for row in result["rows"] if any(run["equimod"] for run in row["runs"])]
    operators = operators_of(result)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle("Equivariance of each operator alone (paper, Fig. 3 and 4)")
    for axes, (form, invariance) in zip(figure.subplots(1, 2), INVARIANCE.items(), strict=True):
        bars = [
            _over_seeds(row["runs"], form, operators, color) for row, color in zip(rows, cycle(COLORS), strict=False)
        ]
        draw_operator_bars(axes, operators, bars, invariance)
        axes.set(ylabel=f"{form} equivariance")
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=color, label=row["title"]) for row, color in zip(rows, cycle(COLORS), strict=False)]
    several = any(len(row["runs"]) > 1 for row in rows)
    lines = "standard deviations over the seeds" if several else "95 % intervals over the images"
    about = f"black lines are {lines}; the dashed one is what a predictor that does nothing has"
    figure.legend(handles=handles, loc="outside lower center", ncols=len(rows), frameon=False, title=about)
    save(figure, path)


def _over_seeds(runs: Sequence[dict[str, Any]], form: str, operators: Sequence[str], color: str) -> OperatorBars:
    of_seeds = [bars_of_run(run["eval"], form, operators, color) for run in runs]
    if len(of_seeds) == 1:
        return of_seeds[0]
    heights = np.array([bars.heights for bars in of_seeds])
    return OperatorBars(heights.mean(0).tolist(), heights.std(0, ddof=1).tolist(), color)
