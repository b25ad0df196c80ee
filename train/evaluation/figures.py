"""Figures of a run: the losses over its steps, a sheet of images and views with the parameters that made them, and the
scores of several runs side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.batch import Batch
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.durable import durable_file
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import AugmentationPolicy, Normalize
from equimod.pipelines.records.protocol import Records
from equimod.train.evaluation.comparison import ACCURACIES, FACTOR, Settings, factor_title, measured
from equimod.train.evaluation.scores import INTERVAL
from equimod.train.report import read_events

_JITTER = ("brightness", "contrast", "saturation", "hue")
_LOSSES = {"loss": "black", "invariance": "tab:blue", "equivariance": "tab:orange", "rotation": "tab:red"}
_SAMPLES, _SAMPLES_A_ROW = 6, 2
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")  # over and over
INVARIANCE = {"absolute": 0, "relative": 1}
"""The forms of equivariance, and what each is where the predictor does nothing."""
DOTS_UP_TO = 50  # entries: a line through fewer is drawn with its points


@dataclass(frozen=True)
class OperatorBars:
    """Equivariance to each operator alone, of one run or setting; NaN where it was not measured."""

    heights: Sequence[float]
    spreads: Sequence[float]  # up and down from the heights
    color: str


@dataclass(frozen=True)
class SampleImage:
    """x of a sample, or a view of it."""

    title: str
    text: str  # lines: what x is, or what was done to the view
    pixels: NDArray[np.float32]  # (S,S,3), 0 to 1


def draw_losses(metrics: Path, path: Path, title: str) -> None:
    """Draw the losses and the learning rate in `metrics` (metrics.jsonl of a run) over the steps, as PNG, durably.

    Raises OSError where the file cannot be read.
    """
    steps = [event for event in read_events(metrics) if event["event"] == "step"]
    step = [event["step"] for event in steps]
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    marker = "." if len(steps) <= DOTS_UP_TO else ""
    parts = [name for name in _LOSSES if name != "loss" and any(name in event for event in steps)]
    # A method alone is the whole loss: one line says it.
    for name in ("loss", *(parts if len(parts) > 1 else ())):
        losses.plot(
            step, [event.get(name, math.nan) for event in steps], marker=marker, color=_LOSSES[name], lw=1.2, label=name
        )
    losses.set(title=title, ylabel="loss")
    losses.legend(frameon=False)
    rate.plot(step, [event["lr"] for event in steps], marker=marker, color="tab:green", lw=1.2)
    rate.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    for axes in (losses, rate):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_views(
    records: Records, policy: AugmentationPolicy, path: Path, *, seed: int, window: int | None = None
) -> None:
    """Draw the first samples of a training as PNG, durably: x and every view, the parameters written under them.

    `seed` and `window`: those of the run, whose first step in epoch 0 took these very views.
    """
    samples = first_samples(records, policy, seed=seed, window=window)
    columns, rows = 1 + len(policy.views), -(-len(samples) // _SAMPLES_A_ROW)
    figure = Figure(figsize=(2.4 * columns * _SAMPLES_A_ROW, 3.3 * rows))
    parts = figure.subfigures(rows, _SAMPLES_A_ROW, squeeze=False).flat
    for sample, part in zip(samples, parts, strict=False):
        part.subplots_adjust(left=0.02, right=0.98, top=0.93, bottom=0, wspace=0.05)
        for axes, image in zip(part.subplots(1, columns, squeeze=False)[0], sample, strict=True):
            _show(axes, image)
    save(figure, path)


def first_samples(
    records: Records, policy: AugmentationPolicy, *, seed: int, window: int | None = None
) -> list[list[SampleImage]]:
    """The first samples of a training, of each x and then its views; see `draw_views`."""
    count = min(_SAMPLES, len(records))
    batch = next(build_pipeline(records, policy, batch_size=count, seed=seed, window=window).epoch(0))
    return [_sample_images(batch, sample, records, policy) for sample in range(count)]


def draw_equivariance(found: Mapping[str, float], path: Path, title: str) -> None:
    """Draw absolute and relative equivariance of each operator with 95 % intervals, as PNG, durably (paper, Fig. 3, 4).

    `found`: what `equivariance.run_per_operator` found. The dashed lines are invariance.
    """
    operators = measured_operators(found)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, (form, invariance) in zip(figure.subplots(1, 2), INVARIANCE.items(), strict=True):
        draw_operator_bars(axes, operators, [bars_of_run(found, form, operators, "tab:blue")], invariance)
        axes.set(ylabel=f"{form} equivariance")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def bars_of_run(found: Mapping[str, float], form: str, operators: Sequence[str], color: str) -> OperatorBars:
    """What `equivariance.run_per_operator` found, with its 95 % intervals."""
    names = [f"equivariance_{form}_{operator}" for operator in operators]
    heights, intervals = ([found.get(f"{name}{end}", math.nan) for name in names] for end in ("", INTERVAL))
    return OperatorBars(heights, intervals, color)


def draw_operator_bars(
    axes: Axes, operators: Sequence[str], settings: Sequence[OperatorBars], invariance: float
) -> None:
    """Draw the operators as groups of a bar a setting; the dashed line is invariance."""
    width = 0.8 / len(settings)
    for place, bars in enumerate(settings):
        left = [number + width * (place - (len(settings) - 1) / 2) for number in range(len(operators))]
        axes.bar(left, bars.heights, yerr=bars.spreads, width=width, color=bars.color, capsize=2, error_kw={"lw": 1})
    axes.axhline(invariance, color="black", ls="--", lw=1)
    axes.set_xticks(range(len(operators)), operators)


def measured_operators(found: Mapping[str, float]) -> list[str]:
    """The operators whose equivariance was measured alone, with intervals, in their order."""
    prefix = "equivariance_absolute_"
    return [name.removeprefix(prefix) for name in found if name.startswith(prefix) and f"{name}{INTERVAL}" in found]


def draw_comparison(settings: Settings, path: Path, title: str) -> None:
    """Draw accuracies and read-outs of factors as bars, a colour a setting and a dot a seed, as PNG, durably."""
    names = measured(settings)
    accuracies = {name: ACCURACIES[name].replace(" on", "\non") for name in names if name in ACCURACIES}
    factors = {name: factor_title(name).replace(" ", "\n") for name in names if name.startswith(FACTOR)}
    panels = {"class found, % of the images": accuracies, "R2 of a linear read-out": factors}
    shown = {label: titles for label, titles in panels.items() if titles}
    figure = Figure(figsize=(max(5, 1.5 + 1.1 * (len(accuracies) + len(factors))), 4), layout="constrained")
    figure.suptitle(title)
    if shown:
        axes = figure.subplots(1, len(shown), width_ratios=[*map(len, shown.values())], squeeze=False)[0]
        for ax, (label, titles) in zip(axes, shown.items(), strict=True):
            _draw_bars(ax, titles, settings)
            ax.set_ylabel(label)
        handles = [bars for bars in axes[0].containers if isinstance(bars, BarContainer)]
        figure.legend(
            handles=handles, labels=[*settings], loc="outside lower center", ncols=len(settings), frameon=False
        )
    save(figure, path)


def _draw_bars(axes: Axes, titles: Mapping[str, str], settings: Settings) -> None:
    """The scores named `titles`, in groups of a bar a setting."""
    width = 0.8 / len(settings)
    for place, (runs, color) in enumerate(zip(settings.values(), cycle(COLORS), strict=False)):
        left = [number + width * (place - (len(settings) - 1) / 2) for number in range(len(titles))]
        scores = [[run["eval"][name] for run in runs if name in run["eval"]] for name in titles]
        heights = [statistics.mean(of_seeds) if of_seeds else 0 for of_seeds in scores]
        bars = axes.bar(left, heights, width=width, color=color)
        digits = [1 if name in ACCURACIES else 2 for name in titles]
        axes.bar_label(bars, [f"{h:.{d}f}" for h, d in zip(heights, digits, strict=True)], padding=4, fontsize=8)
        for x, of_seeds in zip(left, scores, strict=True):
            axes.plot([x] * len(of_seeds), of_seeds, ls="", marker=".", ms=4, color="black")
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(titles)), titles.values())
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def describe(params: AugmentationParams, sample: int, size: Sequence[int]) -> str:
    """What was done to one sample, in the order of application, one line or two an operator.

    `size`: width and height of the original image, in pixels.
    """
    x, y, width, height = params.crop[sample].tolist()
    lines = [f"crop {x},{y} {width}×{height} of {size[0]}×{size[1]}"]
    if params.flip[sample]:
        lines.append("flip")
    if params.jitter[sample]:
        factors = params.factors[sample].tolist()
        first, second, third, fourth = (f"{_JITTER[o]} {factors[o]:.2f}" for o in params.order[sample].tolist())
        lines += [f"jitter {first}, {second},", f"{third}, {fourth}"]
    last = ["gray"] if params.gray[sample] else []
    if params.blur[sample]:
        last.append(f"blur sigma {params.sigma[sample]:.2f} px")
    if params.solarize[sample]:
        last.append("solarize")
    return "\n".join([*lines, ", ".join(last)] if last else lines)


def _sample_images(batch: Batch, sample: int, records: Records, policy: AugmentationPolicy) -> list[SampleImage]:
    assert batch.x is not None
    index = int(batch.index[sample])
    size = records.size[records.index.searchsorted(index)].tolist()
    name = records.classes[int(batch.label[sample])] if records.classes else "no label"
    told = f"{name}\nimage {index}\n{size[0]}×{size[1]}"
    images = [SampleImage("x", told, _pixels(batch.x[sample], policy.x.normalize))]
    for number, (view, of) in enumerate(zip(batch.views, policy.views, strict=True), 1):
        text, pixels = describe(view.params, sample, size), _pixels(view.image[sample], of.normalize)
        images.append(SampleImage(f"view {number}", text, pixels))
    return images


def _pixels(image: Tensor, normalize: Normalize) -> NDArray[np.float32]:
    mean, std = (torch.tensor(value)[:, None, None] for value in (normalize.mean, normalize.std))
    pixels: NDArray[np.float32] = (image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return pixels


def _show(axes: Axes, image: SampleImage) -> None:
    axes.imshow(image.pixels, interpolation="nearest")
    axes.set_title(image.title, fontsize=9, pad=3)
    axes.text(0, -0.03, image.text, transform=axes.transAxes, va="top", fontsize=8, linespacing=1.25)
    axes.set_anchor("N")
    axes.axis("off")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, durably, into a folder that is made where it is missing."""
    path.parent.mkdir(exist_ok=True)
    with durable_file(path) as handle:
        figure.savefig(handle, format="png", dpi=150)
