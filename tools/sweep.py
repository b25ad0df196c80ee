"""Run a table of the paper: `equimod sweep table1 --size cpu --data RECORDS --val RECORDS`.

Every row is trained and evaluated with every seed, one after the other, in OUTPUT/ROW-seedSEED. Rows of several tables
that are trained the same share their runs. The same command goes on where it was interrupted, in the middle of a
training too. After each run OUTPUT/TABLE-SIZE.json holds what is there, with the resolved settings. At the end the
table is printed with the paper's column beside ours, and drawn beside that file.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import EquimodError, UsageError, spaced
from equimod.pipelines.progress import say
from equimod.train.command import run_command
from equimod.train.config import RECIPES, differences, parse, read_recipe, read_run
from equimod.train.evaluation.provenance import provenance
from equimod.train.evaluation.scores import read_scores
from equimod.train.evaluation.summary import summary
from equimod.train.evaluation.sweep_rows import TABLES, Row

Size = Literal["cpu", "paper"]


class SweepError(EquimodError):
    """A sweep that cannot go on: the message names the run and the remedy, in one line."""


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
            "evaluation",
            "fine-tuning",
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
    """Folder of the runs; none: runs/DATASET-SIZE."""
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
    launcher: str
    options: list[str]  # of train/main.py
    evaluators: tuple[str, ...]  # options of train/evaluate.py

    @property
    def training(self) -> list[str]:
        return [*shlex.split(self.launcher), "-m", "equimod.train.main", *self.options]

    @property
    def evaluation(self) -> list[str]:
        return [sys.executable, "-m", "equimod.train.evaluate", str(self.folder), *self.evaluators]

    def trained(self) -> bool:
        """Whether its folder has the encoder of this training. Raises SweepError where it has that of another."""
        if not (self.folder / "encoder.safetensors").is_file():
            return False
        asked, found = parse(self.options), read_run(self.folder)
        asked = replace(asked, precision=found.precision) if asked.precision == "auto" else asked
        changed = differences(asked, found)
        if asked.data != found.data:
            changed.append(f"data={spaced(asked.data or ())} (was {spaced(found.data or ())})")
        if changed:
            raise SweepError(f"{self.folder} holds a run with {', '.join(changed)}; give another --output")
        return True

    def evaluated(self) -> bool:
        """Whether every score is there; an interrupted evaluation leaves some."""
        done = read_scores(self.folder).get("evaluators", {})
        scores = (option for option in self.evaluators if option != "--figures")
        return all(option.removeprefix("--").replace("-", "_") in done for option in scores)


def _runs(arguments: Arguments) -> list[_Run]:
    table = TABLES[arguments.table]
    output = arguments.output or Path("runs") / f"{table.dataset}-{arguments.size}"
    runs = []
    for seed in range(arguments.seeds):
        for row in table.rows:
            folder = output / f"{row.name}-seed{seed}"
            suffix = "_cpu" if arguments.size == "cpu" and table.dataset == "cifar10" else ""
            recipe = f"{row.method}{'_equimod' if row.equimod else ''}_{table.dataset}{suffix}"
            options = [
                *("--config", recipe),
                *("--data", str(arguments.data), "--val", str(arguments.val)),
                *("--output", str(folder), "--seed", str(seed), "--resume", "auto"),
                *_epochs(row, recipe),
                *table.options,
                *row.options,
                *arguments.trainer,
            ]
            linear = "--linear-cached" if arguments.size == "cpu" else "--linear"
            of_equimod = ("--equivariance", *table.of_equimod) if row.equimod else ()
            evaluators = (linear, "--knn", *of_equimod, *table.evaluators)
            runs.append(_Run(row, folder, arguments.launcher, options, evaluators))
    return runs


def _epochs(row: Row, recipe: str) -> list[str]:
    """The option for those of a row that is trained longer than its recipe says."""
    if row.longer == 1:
        return []
    return ["--epochs", str(round(row.longer * read_recipe(RECIPES / f"{recipe}.yaml").epochs))]


def _sweep(arguments: Arguments) -> None:
    runs = _runs(arguments)
    if arguments.list:
        for run in runs:
            say(f"{shlex.join(run.training)} && {shlex.join(run.evaluation)}")
        return
    result = runs[0].folder.parent / f"{arguments.table}-{arguments.size}.json"
    for number, run in enumerate(runs, 1):
        say(f"{arguments.table}, run {number} of {len(runs)}: {run.folder}")
        if not run.trained():
            _call(run.training, run.folder)
        if not run.evaluated():
            _call(run.evaluation, run.folder)
            _write(result, arguments, runs)
    _write(result, arguments, runs)
    found = json.loads(result.read_bytes())
    print(found["title"])
    for table in TABLES[arguments.table].show(found):
        table.show()
    # Only now: torch and matplotlib take seconds to import, and --help should not.
    from equimod.train.evaluation.sweep_pictures import draw

    draw(arguments.table, found, picture := result.with_suffix(".png"))
    say(f"figure: {picture}")


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
    table = TABLES[arguments.table]
    evaluated = {run.folder: summary(run.folder) for run in runs if run.evaluated()}
    # Of a part of the training images it is another result than of all.
    parts = sorted({run["images"] for run in evaluated.values()} - {table.images}) if table.images else []
    rows = [
        {
            "title": row.title,
            "paper": row.paper,
            "options": list(row.options),
            "runs": [evaluated[run.folder] for run in runs if run.row == row and run.folder in evaluated],
        }
        for row in table.rows
    ]
    found = {
        **provenance("tools/sweep.py", command),
        "benchmark": "-".join([arguments.table, arguments.size, *map(str, parts)]),
        "title": table.title,
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
