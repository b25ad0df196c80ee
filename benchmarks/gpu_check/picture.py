"""The figure of a GPU check: the rates of the step, and what the operators take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equimod.pipelines.durable import durable_file

PANELS = (
    (("step", "compiled_step"), "encoder images/s", "encoder images/s of the step alone"),
    (("speed",), "ms", "operators, ms of a batch"),
)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a bar for every rate and time that was measured, as PNG, durably. OSError where it cannot be written."""
    panels = []
    for names, unit, title in PANELS:
        sections = [section["findings"] for section in result["sections"] if section["name"] in names]
        findings = [f for found in sections for f in found if f["value"] is not None and f["unit"] == unit]
        panels += [(title, findings)] if findings else []
    heights = [len(findings) + 1 for _, findings in panels] or [1]
    figure = Figure(figsize=(9, 0.8 + 0.32 * sum(heights)), layout="constrained")
    for axes, (title, findings) in zip(
        figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0], panels, strict=False
    ):
        _bars(axes, title, findings)
    commit = result["commit"]["sha"][:10] if result["commit"] else "unknown"
    figure.suptitle(f"{result['gpu']['name']}, torch {result['versions']['torch']}, commit {commit}", fontsize=10)
    with durable_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _bars(axes: Axes, title: str, findings: list[dict[str, Any]]) -> None:
    middle = [f["value"]["median"] for f in findings]
    spread = [
        [f["value"]["median"] - f["value"]["low"] for f in findings],
        [f["value"]["high"] - f["value"]["median"] for f in findings],
    ]
    colors = ["tab:red" if f["met"] is False else "tab:blue" for f in findings]
    axes.barh(range(len(findings)), middle, xerr=spread, color=colors, ecolor="black", capsize=3)
    axes.set_yticks(range(len(findings)), [f["name"] for f in findings], fontsize=8)
    axes.invert_yaxis()
    for row, finding in enumerate(findings):
        axes.text(finding["value"]["high"], row, f"  {finding['value']['median']:,.4g}", va="center", fontsize=8)
    axes.set_xlim(0, 1.15 * max(f["value"]["high"] for f in findings))
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
