"""Charts of a report as SVG, small enough that their text can be read on a phone. Names stand beside them, in HTML."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from equimod.pipelines.errors import one_line
from equimod.pipelines.timing import TRAINING
from equimod.train.evaluation.figures import (
    DOTS_UP_TO,
    INVARIANCE,
    bars_of_run,
    draw_operator_bars,
    measured_operators,
)
from equimod.train.html_report.contents import Run
from equimod.train.time_spent import REST

CURVES = {
    "loss": "loss",
    "invariance": "loss of the method",
    "equivariance": "loss of EquiMod",
    "rotation": "loss of E-SSL",
    "probe_top1": "top-1 of the online probe, %",
    "lr": "learning rate",
}
"""Numbers of a step's event that are drawn, and what each is called."""
_COLORS, _CLASS_COLORS = (
    [mpl.colors.to_hex(mpl.colormaps[name](number)) for number in range(size)]
    for name, size in (("tab10", 10), ("tab20", 20))
)
_POINTS = 1000  # of a curve, at most
_SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 10.5}
_SIZE = (4.6, 2.8)  # inches


@dataclass(frozen=True)
class Chart:
    """A drawing with what it shows in words."""

    title: str
    about: str  # for who does not see it
    svg: str
    legend: list[tuple[str, str]]  # colours as #rrggbb, and what has them


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Losses and the learning rate over the steps, a line a run. A loss that is the only part of the whole is left
    out."""
    parts = ("invariance", "equivariance", "rotation")
    several = any(sum(name in run.steps[-1] for name in parts) > 1 for run in runs if run.steps)
    names = [name for name in CURVES if any(name in step for run in runs for step in run.steps)]
    return [_curve(runs, name) for name in names if several or name not in parts]


def _curve(runs: Sequence[Run], name: str) -> Chart:
    def draw(axes: Axes) -> None:
        for run, color in zip(runs, cycle(_COLORS), strict=False):
            steps = run.steps[:: max(1, -(-len(run.steps) // _POINTS))]
            found = [(step["step"], step[name]) for step in steps if isinstance(step.get(name), int | float)]
            if found:
                marker = "." if len(found) <= DOTS_UP_TO else ""
                axes.plot(*zip(*found, strict=True), marker=marker, ms=4, lw=1.2, color=color)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)

    legend = _legend([run.name for run in runs]) if len(runs) > 1 else []
    return _chart(CURVES[name], f"{CURVES[name]} over the steps of {_listed(runs)}", draw, legend)


def training_thread(run: Run) -> Chart | None:
    """What the training thread did, as shares of the time of all steps; None where no step says it."""
    told = [step["seconds"] for step in run.steps if isinstance(step.get("seconds"), dict)]
    seconds = {name: sum(of_step.get(name, 0.0) for of_step in told) for name in TRAINING}
    whole = max(run.seconds, sum(seconds.values()))
    if not told or not whole:
        return None
    shares = {name: value / whole for name, value in {**seconds, REST: whole - sum(seconds.values())}.items()}

    def draw(axes: Axes) -> None:
        left = 0.0
        for share, color in zip(shares.values(), _COLORS, strict=False):
            axes.barh([0], [100 * share], left=100 * left, color=color)
            left += share
        axes.set(xlim=(0, 100), yticks=[], xlabel="% of the time of all steps")
        axes.spines["left"].set_visible(False)

    legend = _legend([f"{name} {share:.0%}" for name, share in shares.items()])
    about = f"shares of the time of the training thread of {run.name}: {', '.join(name for _, name in legend)}"
    return _chart("What the training thread did", about, draw, legend, (_SIZE[0], 0.9))


def equivariance(runs: Sequence[Run]) -> list[Chart]:
    """Equivariance to each operator alone, a bar a run, with 95 % intervals, for the runs that it was measured of."""
    operators = list(dict.fromkeys(name for run in runs for name in measured_operators(run.scores)))
    return [_operators(runs, operators, form, none) for form, none in INVARIANCE.items()] if operators else []


def _operators(runs: Sequence[Run], operators: Sequence[str], form: str, invariance: float) -> Chart:
    colored = zip(runs, cycle(_COLORS), strict=False)
    measured = [(run, color) for run, color in colored if measured_operators(run.scores)]

    def draw(axes: Axes) -> None:
        bars = [bars_of_run(run.scores, form, operators, color) for run, color in measured]
        draw_operator_bars(axes, operators, bars, invariance)

    names, colors = zip(*((run.name, color) for run, color in measured), strict=True)
    legend = _legend(names, colors) if len(runs) > 1 else []
    return _chart(f"{form} equivariance", f"{form} equivariance to {', '.join(operators)}", draw, legend)


def feature_map(points: NDArray[np.float64], label: NDArray[np.int64], classes: Sequence[str], run: Run) -> Chart:
    """Points (N,2), each in the colour of its class (N,): of many classes, without saying which."""
    many = len(classes) > len(_CLASS_COLORS)

    def draw(axes: Axes) -> None:
        if many or not classes:
            axes.scatter(points[:, 0], points[:, 1], c=label, cmap="viridis", s=5, linewidths=0)
        for number, color in enumerate(() if many else _CLASS_COLORS[: len(classes)]):
            x, y = points[label == number].T
            axes.scatter(x, y, color=color, s=5, linewidths=0)
        axes.set(xticks=[], yticks=[])

    legend = [] if many else _legend(classes, _CLASS_COLORS)
    return _chart(run.name, f"map of the features of {run.name}", draw, legend, (_SIZE[0], 4.2))


def _chart(
    title: str,
    about: str,
    draw: Callable[[Axes], None],
    legend: list[tuple[str, str]],
    size: tuple[float, float] = _SIZE,
) -> Chart:
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": one_line(about)}), io.StringIO() as text:
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        svg = text.getvalue()
    # Groups are called alike in every drawing, and nothing refers to them.
    return Chart(title, about, re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :]), legend)


def _legend(names: Sequence[str], colors: Sequence[str] = _COLORS) -> list[tuple[str, str]]:
    return list(zip(cycle(colors), names, strict=False))


def _listed(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs)
