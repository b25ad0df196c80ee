"""The picture of a throughput result: a bar a contender, from the lowest to the highest round marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from equimod.benchmarks.titles import AUGMENTER_TITLES, LOADER_TITLES
from equimod.pipelines.durable import durable_file

_OURS = ("native", "dali", "ffcv", "equimod", "one_by_one", "train", "embed")


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the images/s of all contenders as PNG, durably: the fastest on top, OSError where it cannot be written."""
    titles = AUGMENTER_TITLES if result["benchmark"] == "augment" else LOADER_TITLES
    speeds = {name: measured["images_per_second"] for name, measured in result["contenders"].items()}
    names = sorted(speeds, key=lambda name: float(speeds[name]["median"]))
    medians = [speeds[name]["median"] for name in names]
    spread = [
        [speeds[n]["median"] - speeds[n]["low"] for n in names],
        [speeds[n]["high"] - speeds[n]["median"] for n in names],
    ]
    figure = Figure(figsize=(8, 0.9 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:blue" if name in _OURS else "tab:gray" for name in names]
    axes.barh([titles.get(n, n) for n in names], medians, xerr=spread, color=colors, ecolor="black", capsize=3)
    for row, name in enumerate(names):
        axes.text(speeds[name]["high"] * 1.01, row, f" {speeds[name]['median']:,.0f}", va="center")
    machine, settings = result["machine"], result["settings"]
    threads = f"{settings['threads']} thread(s)" if "threads" in settings else f"{machine['cores']} cores"
    axes.set(
        xlabel=f"images/s on {threads} of {machine['cpu']}",
        xlim=(0, 1.12 * max(speeds[n]["high"] for n in names)),
    )
    axes.spines[["top", "right"]].set_visible(False)
    with durable_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
