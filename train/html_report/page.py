"""The one file of HTML: tables and charts of runs, put into report.html.jinja beside this file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from equimod.train.config import ConfigError
from equimod.train.evaluation import comparison
from equimod.train.evaluation.scores import INTERVAL
from equimod.train.evaluation.summary import mean_and_deviation
from equimod.train.evaluation.table import Table
from equimod.train.html_report import charts
from equimod.train.html_report.contents import Run, differing, flat
from equimod.train.html_report.images import Shown
from equimod.train.time_spent import COLUMNS

if TYPE_CHECKING:
    import jinja2

_EVERYWHERE = ("seed", "train_images", "val", "val_images", "seconds")  # in what an evaluator used


@dataclass(frozen=True)
class Link:
    """A file, with its address where the report lies in the run's folder."""

    text: str
    address: str | None


def require_jinja() -> None:
    """Raise ConfigError where Jinja2 is missing."""
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"a report needs jinja2 ({error}): pip install 'equimod[report]'") from error


def render(runs: Sequence[Run], shown: Shown, output: Path) -> bytes:
    """The report as UTF-8, for the file `output`. Equal runs give equal bytes."""
    alone = f"{runs[0].config.title} on {runs[0].config.data_name}"
    html = _template().render(
        title=alone if len(runs) == 1 else f"{len(runs)} runs: {', '.join(_names(runs))}",
        runs=runs,
        facts=_of_each({run.name: run.facts for run in runs}),
        differing=Table(["", *_names(runs)], [[name, *values] for name, values in differing(runs).items()]),
        settings=_of_each({run.name: run.settings for run in runs}),
        curves=charts.curves(runs),
        times=[(run, charts.training_thread(run), _time_table(run)) for run in runs],
        scores=scores(runs),
        evaluators=_evaluators(runs),
        notes=_notes(runs),
        equivariance=charts.equivariance(runs),
        shown=shown,
        files={run.name: _links(run, output) for run in runs},
    )
    return html.encode(errors="backslashreplace")  # names of files that are not UTF-8


def _template() -> jinja2.Template:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.jinja")


def _time_table(run: Run) -> Table | None:
    return Table(list(COLUMNS), run.time_spent.rows()) if run.time_spent else None


def scores(runs: Sequence[Run]) -> Table:
    """A row a score. Columns: the runs, those that differ in their seed alone side by side, then their mean."""
    by_folder = {run.folder: run for run in runs}
    groups = comparison.by_settings({folder: run.config for folder, run in by_folder.items()})
    names = list(dict.fromkeys(name for run in runs for name in run.scores if not name.endswith(INTERVAL)))
    columns, rows = [""], [[_title(name)] for name in names]
    for title, folders in groups.items():
        alike = [by_folder[folder] for folder in folders]
        columns += _names(alike)
        for name, row in zip(names, rows, strict=True):
            row += [_score(run, name) for run in alike]
        if len(alike) > 1:
            columns.append(f"{title}, mean of {len(alike)}")
            for name, row in zip(names, rows, strict=True):
                row.append(mean_and_deviation([run.scores.get(name) for run in alike], _digits(name)))
    return Table(columns, rows)


def _score(run: Run, name: str) -> str:
    """A score, with its 95 % interval in a second line where it has one."""
    value, half, digits = run.scores.get(name), run.scores.get(f"{name}{INTERVAL}"), _digits(name)
    if value is None:
        return "–"
    interval = "" if half is None else f"\n{value - half:.{digits}f} to {value + half:.{digits}f}"
    return f"{value:.{digits}f}{interval}"


def _title(name: str) -> str:
    if comparison.in_order([name.replace("_top5", "_top1")]):
        return comparison.title(name)
    return name.replace("_", " ") + (", %" if "_top" in name else "")


def _digits(name: str) -> int:
    return 1 if "_top" in name else 3


def _evaluators(runs: Sequence[Run]) -> Table:
    """What each evaluator used, a row for each of each run."""
    rows = []
    for run in runs:
        for name, used in run.evaluators.items():
            own = flat({key: value for key, value in used.items() if key not in (*_EVERYWHERE, "train")})
            told = ", ".join(f"{key} {value}" for key, value in own.items() if key)
            of_all = [str(used.get(key, "–")) for key in _EVERYWHERE]
            rows.append([f"{run.name}: {name}" if len(runs) > 1 else name, *of_all, told])
    return Table(["", "seed", "training images", "validation images", "number of these", "seconds", "settings"], rows)


def _notes(runs: Sequence[Run]) -> list[str]:
    """What keeps scores from being taken at face value."""
    notes = [
        f"{run.name} was evaluated at {run.scored}, and its newest checkpoint is {run.checkpoint.path.name}."
        for run in runs
        if run.scored and run.checkpoint and run.checkpoint.path.name != run.scored
    ]
    images = {str(used.get("val")) for run in runs for used in run.evaluators.values()}
    return notes + [f"Scores are on different images: {', '.join(sorted(images))}."] * (len(images) > 1)


def _of_each(runs: dict[str, dict[str, str]]) -> Table:
    """A column a run of what has names."""
    names = dict.fromkeys(name for values in runs.values() for name in values)
    return Table(["", *runs], [[name, *(values.get(name, "–") for values in runs.values())] for name in names])


def _names(runs: Sequence[Run]) -> list[str]:
    return [run.name for run in runs]


def _links(run: Run, output: Path) -> list[Link]:
    inside = output.parent.resolve() == run.folder.resolve()
    return [Link(name, quote(os.fsencode(name)) if inside else None) for name in run.files]
