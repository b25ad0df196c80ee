"""Run a table of the paper: `equimod sweep table1 --size cpu --data RECORDS --val RECORDS`.

Every row is trained and evaluated with every seed, one after the other, in OUTPUT/ROW-seedSEED. The same command goes
on where it was interrupted, in the middle of a training too. After each run OUTPUT/TABLE-SIZE.json holds what is there,
with the resolved settings, and the table is printed with the paper's column beside ours.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import EquimodError, UsageError
from equimod.pipelines.progress import say
from equimod.train.command import run_command
from equimod.train.evaluation import comparison, sweep_tables
from equimod.train.evaluation.provenance import provenance
from equimod.train.evaluation.scores import read_scores
from equimod.train.evaluation.summary import summary
from equimod.train.evaluation.table import Table

Size = Literal["cpu", "paper"]


class SweepError(EquimodError):
    """A sweep that cannot go on: the message names the run and the remedy, in one line."""


@dataclass(frozen=True)
class Row:
    name: str  # of the run's folder
    title: str
    paper: float | None  # linear top-1 in percent, CIFAR-10, 800 epochs
    options: tuple[str, ...] = ()  # of train/main.py, beside those of every row
    method: str = "simclr"
    equimod: bool = True


@dataclass(frozen=True)
class PaperTable:
    title: str
    rows: tuple[Row, ...]
    evaluators: tuple[str, ...] = ()  # options of train/evaluate.py, beside those of every table
    of_equimod: tuple[str, ...] = ()  # the same, for rows with EquiMod
    dataset: str = "cifar10"
    show: Callable[[dict[str, Any]], list[Table]] = sweep_tables.rows  # of the result


def _varied(title: str, option: str, values: Mapping[str, float | None], default: str) -> PaperTable:
    """SimCLR + EquiMod with one option varied: value, as on a command line, to the paper's score."""
    rows = []
    for value, paper in values.items():
        words = value.split()
        label = f"{value or 'none'}{' (default)' if value == default else ''}"
        rows.append(Row("-".join(words) or "none", label, paper, (option, *words)))
    return PaperTable(title, tuple(rows))


_WEIGHTS = {"0": 90.96, "0.1": 92.07, "0.2": 92.31, "0.5": 92.37, "1": 92.79, "2": 92.33, "5": 92.81, "10": 92.66}
_TEMPERATURES = {"0.05": 92.13, "0.1": 92.13, "0.2": 92.79, "0.5": 92.31, "1": 92.14}
_BATCHES = {"64": 92.23, "128": 92.24, "256": 92.38, "512": 92.79, "1024": 92.23}

_ON_CPUS = ("--system.device", "cpu")

_METHODS = (
    Row("simclr", "SimCLR", 90.96, equimod=False),
    Row("simclr-equimod", "SimCLR + EquiMod", 92.79),
    Row("byol", "BYOL", 90.44, method="byol", equimod=False),
    Row("byol-equimod", "BYOL + EquiMod", 91.57, method="byol"),
    Row("barlow_twins", "Barlow Twins", 86.94, method="barlow_twins", equimod=False),
    Row("barlow_twins-equimod", "Barlow Twins + EquiMod", 88.87, method="barlow_twins"),
)

TABLES = {
    "table1": PaperTable("Methods with and without EquiMod (paper, Table 1)", _METHODS),
    "figures": PaperTable(
        "Equivariance of each operator (paper, Fig. 3 and 4), and what else tells how much the parameters are known",
        _METHODS,
        evaluators=("--readout", "--figures"),
        of_equimod=("--equivariance-per-operator", "--retrieval"),
        show=sweep_tables.figure_rows,
    ),
    "table2a": _varied(
        "Layers of the equivariant projector (paper, Table 2a)",
        "--equivariance.projector",
        {"None": 88.46, "128": 91.58, "2048 128": 92.58, "2048 2048 128": 92.79},
        "2048 2048 128",
    ),
    "table2b": _varied(
        "Hidden layers of the equivariant predictor (paper, Table 2b)",
        "--equivariance.predictor-hidden",
        {"": 92.79, "16": 92.67, "128": 92.59, "2048": 92.70},
        "",
    ),
    "table2c": _varied(
        "Layers that embed the parameters (paper, Table 2c)",
        "--equivariance.embedding",
        {
            "None": 92.50,
            "16": 92.57,
            "128": 92.79,
            "2048": 92.50,
            "16 128": 92.47,
            "128 128": 92.13,
            "2048 128": 92.05,
        },
        "128",
    ),
    "table3a": _varied("Weight of the equivariance loss (paper, Table 3a)", "--equivariance.weight", _WEIGHTS, "1"),
    "table3b": _varied(
        "Temperature of the equivariance loss (paper, Table 3b)", "--equivariance.temperature", _TEMPERATURES, "0.2"
    ),
    "table3c": _varied("Batch size (paper, Table 3c)", "--batch-size", _BATCHES, "512"),
    "layers": _varied(
        "Layer of the encoder that EquiMod works on (after SER, Lee et al., 2026)",
        "--equivariance.layer",
        {"None": 92.79, "layer3": None, "layer2": None},
        "None",
    ),
    "controls": PaperTable(
        "Controls: what x in the batch does without its loss, and both forms of the loss",
        (
            Row("two-views", "SimCLR, two views", 90.96, equimod=False),
            Row("weight-0", "x in the batch, weight 0", None, ("--equivariance.weight", "0")),
            Row("paper", "EquiMod, Eq. 4", 92.79, ("--equivariance.negatives", "paper")),
            Row("official", "EquiMod, form of the authors' code", None, ("--equivariance.negatives", "official")),
        ),
    ),
    "resolution": PaperTable(
        "Images that grow, beside Table 1's of 32 pixels in all epochs",
        (Row("16-to-32", "SimCLR + EquiMod, 16, 24, then 32 pixels", None, ("--resolution.start", "16")),),
    ),
    "demo": PaperTable(
        "What `make demo` trains, on the embedded data set",
        (
            Row("simclr", "SimCLR", None, _ON_CPUS, equimod=False),
            Row("simclr-equimod", "SimCLR + EquiMod", None, _ON_CPUS),
        ),
        evaluators=("--factors",),
        dataset="shapes",
        show=comparison.rows,
    ),
}
"""In Table 3c the learning rate stays that of the recipe: the paper does not say that it follows the batch size."""


@dataclass(frozen=True)
class Arguments:
    table: Annotated[
        Literal[
            "table1",
            "table2a",
            "table2b",
            "table2c",
            "table3a",
            "table3b",
            "table3c",
            "figures",
            "layers",
            "controls",
            "resolution",
            "demo",
        ],
        tyro.conf.Positional,
    ]
    """Table of the paper, or of what is beside it, all on CIFAR-10 but for demo."""
    size: Size
    """cpu: ResNet-10 of width 16 and 8 epochs, classifier on cached features; paper: ResNet-18 and 800 epochs, the
    paper's linear evaluation."""
    data: Path
    """Records of CIFAR-10's training images; for demo, those of the embedded data set."""
    val: Path
    """Records of its test images."""
    output: Path | None = None
    """Folder of the runs; none: runs/TABLE-SIZE."""
    seeds: int = 1
    """Seeds 0, 1, ... of every row; the paper has one."""
    launcher: str = sys.executable
    """What starts train/main.py, such as "torchrun --nproc-per-node 8"."""
    list: bool = False
    """Print the commands and run nothing, for a cluster's queue."""
    trainer: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """More options of train/main.py for every training, behind `--`, such as -- --epochs 2 for a trial."""


@dataclass(frozen=True)
class _Run:
    row: Row
    folder: Path
    training: list[str]
    evaluators: tuple[str, ...]  # options of train/evaluate.py

    @property
    def evaluation(self) -> list[str]:
        return [sys.executable, "-m", "equimod.train.evaluate", str(self.folder), *self.evaluators]

    def evaluated(self) -> bool:
        """Whether every score is there; an interrupted evaluation leaves some."""
        done = read_scores(self.folder).get("evaluators", {})
        scores = (option for option in self.evaluators if option != "--figures")
        return all(option.removeprefix("--").replace("-", "_") in done for option in scores)


def _runs(arguments: Arguments) -> list[_Run]:
    output = arguments.output or Path("runs") / f"{arguments.table}-{arguments.size}"
    table = TABLES[arguments.table]
    runs = []
    for seed in range(arguments.seeds):
        for row in table.rows:
            folder = output / f"{row.name}-seed{seed}"
            suffix = "_cpu" if arguments.size == "cpu" and table.dataset == "cifar10" else ""
            recipe = f"{row.method}{'_equimod' if row.equimod else ''}_{table.dataset}{suffix}"
            training = [
                *shlex.split(arguments.launcher),
                *("-m", "equimod.train.main"),
                *("--config", recipe),
                *("--data", str(arguments.data), "--val", str(arguments.val)),
                *("--output", str(folder), "--seed", str(seed), "--resume", "auto"),
                *row.options,
                *arguments.trainer,
            ]
            linear = "--linear-cached" if arguments.size == "cpu" else "--linear"
            of_equimod = ("--equivariance", *table.of_equimod) if row.equimod else ()
            evaluators = (linear, "--knn", *of_equimod, *table.evaluators)
            runs.append(_Run(row, folder, training, evaluators))
    return runs


def _sweep(arguments: Arguments) -> None:
    runs = _runs(arguments)
    if arguments.list:
        for run in runs:
            say(f"{shlex.join(run.training)} && {shlex.join(run.evaluation)}")
        return
    result = runs[0].folder.parent / f"{arguments.table}-{arguments.size}.json"
    for number, run in enumerate(runs, 1):
        say(f"{arguments.table}, run {number} of {len(runs)}: {run.folder}")
        if not (run.folder / "encoder.safetensors").is_file():
            _call(run.training, run.folder)
        if not run.evaluated():
            _call(run.evaluation, run.folder)
            _write(result, arguments, runs)
    _write(result, arguments, runs)
    found = json.loads(result.read_bytes())
    print(found["title"])
    for table in TABLES[arguments.table].show(found):
        table.show()


def _call(command: Sequence[str], folder: Path) -> None:
    """Run a command to its end; an interruption is passed on, so that a training may save."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise SweepError(f"{folder}: the command ended with {code}, its reason stands above: {shlex.join(command)}")


def _write(result: Path, arguments: Arguments, runs: Sequence[_Run]) -> None:
    """Write what the evaluated runs amount to, row by row."""
    more = ["--", *arguments.trainer] if arguments.trainer else []
    command = [arguments.table, "--size", arguments.size, "--seeds", str(arguments.seeds)]
    command += ["--data", str(arguments.data), "--val", str(arguments.val), *more]
    evaluated = [run for run in runs if run.evaluated()]
    rows = [
        {
            "title": row.title,
            "paper": row.paper,
            "options": list(row.options),
            "runs": [summary(run.folder) for run in evaluated if run.row == row],
        }
        for row in TABLES[arguments.table].rows
    ]
    found = {
        **provenance("tools/sweep.py", command),
        "benchmark": f"{arguments.table}-{arguments.size}",
        "title": TABLES[arguments.table].title,
        "rows": rows,
    }
    with durable_file(result) as file:
        file.write(json.dumps(found, indent=1).encode() + b"\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""

    def run() -> None:
        arguments = tyro.cli(Arguments, args=argv, description=__doc__)
        if arguments.seeds < 1:
            raise UsageError(f"--seeds {arguments.seeds} is too small; give 1 or more")
        _sweep(arguments)

    return run_command(run, again="run the same command to go on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
