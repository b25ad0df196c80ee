"""Whether and how fast everything works on this GPU: `python benchmarks/gpu.py --output FILE.json`.

Sections run one after the other, each in a process of its own with a time limit, the most telling first. One that fails
or runs out of time says so in a line, and the next one runs; one that does not fit into `--minutes` any more is named.
Exits with 0 where all that is demanded was found, with 1 otherwise. `--device cpu` runs the same code on toys, to see
that the check itself works; that is no result, and none is stored.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from equimod.benchmarks.gpu_check.picture import draw
from equimod.benchmarks.gpu_check.sections import NAMES, SECTIONS, Outcome, run_section
from equimod.benchmarks.result import keep
from equimod.pipelines.errors import UsageError
from equimod.train.command import run_command
from equimod.train.evaluation.table import Table

WIDTH = 118  # columns, where the output is no terminal
FAILED = "FAILED"
RATES = ("step", "compiled_step", "speed")
_STATES = {True: "ok", False: FAILED, None: ""}  # whether what was found is as it must be


@dataclass(frozen=True)
class Arguments:
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """Sections to run; none given: all, in the order that --help lists."""
    minutes: float = 6.0
    """Time for everything; the last section, a real run, takes what the others leave."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: the same code on toys, without a result."""
    data: Path | None = None
    """Folder `data` of tools/pack_gpu_check.py, with real images; none: images are drawn."""
    output: Path | None = None
    """JSON file for the result; a PNG of the same name is drawn beside it."""

    def check(self) -> None:
        """Raises UsageError."""
        unknown = [name for name in self.only if name not in NAMES]
        if unknown:
            raise UsageError(f"--only {unknown[0]}: no such section; give some of {', '.join(NAMES)}")
        if self.minutes <= 0:
            raise UsageError(f"--minutes {self.minutes:g}: give more than 0")
        if self.data is not None and not self.data.is_dir():
            raise UsageError(f"--data {self.data} is no folder; make one with tools/pack_gpu_check.py, or leave it out")
        self._check_output()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "torch sees no GPU; tools/doctor.py says what is missing, --device cpu runs this check's code on toys"
            )

    def _check_output(self) -> None:
        if self.output is None:
            return
        if self.device == "cpu":
            raise UsageError("--device cpu gives no result to store; leave out --output")
        if self.output.suffix != ".json":
            raise UsageError(f"--output {self.output} does not end in .json; give a file name that does")
        if not self.output.parent.is_dir():
            raise UsageError(f"--output {self.output}: its folder does not exist; create it first")


def rows(result: dict[str, Any]) -> list[Table]:
    """The tables of a result, one a section."""
    return [_table(section) for section in result["sections"]]


def rates(result: dict[str, Any]) -> list[Table]:
    """The rates of steps, and what the operators take, one a row."""
    findings = [f for section in result["sections"] if section["name"] in RATES for f in section["findings"]]
    cells = [[f["name"], _value(f["value"], f["unit"])] for f in findings if f["unit"] in ("ms", "encoder images/s")]
    return [Table(["what", "median (lowest to highest round)"], cells)]


def caption(result: dict[str, Any]) -> str:
    """The card, and what the rates are of."""
    card = result["gpu"]
    return (
        f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}, triton {card['triton']}. The paper's setting "
        "for ImageNet as one of 32 ranks has it: ResNet-50, 128 images of 224 pixels. Operators: time of their kernels."
    )


def _table(section: dict[str, Any]) -> Table:
    columns = [f"{section['name']}: {section['title']}, {section['seconds']:.0f} s", "found", "", "note"]
    cells = [
        [finding["name"], _value(finding["value"], finding["unit"]), _STATES[finding["met"]], finding["note"]]
        for finding in section["findings"]
    ]
    for name, state in (("fault", FAILED), ("left_out", "left out")):
        if section[name]:
            cells.append([section["title"], "", state, section[name]])
    return Table(columns, cells)


def _value(value: dict[str, float] | None, unit: str) -> str:
    if value is None:
        return ""
    median, low, high = (f"{value[key]:,.4g}" if abs(value[key]) < 1000 else f"{value[key]:,.0f}" for key in value)
    return f"{median}{f' ({low} to {high})' if low != high else ''} {unit}".strip()


def run(arguments: Arguments) -> Iterator[Outcome]:
    """The outcome of every section, in order."""
    began = time.monotonic()
    for section in SECTIONS:
        if arguments.only and section.name not in arguments.only:
            continue
        left = 60 * arguments.minutes - (time.monotonic() - began)
        if left < section.seconds and arguments.device == "cuda":
            why = f"takes about {section.seconds} s, and {max(0.0, left):.0f} s are left; give more --minutes"
            yield Outcome(section, left_out=why)
            continue
        yield run_section(section, arguments.device, arguments.data, min(section.limit, left))


def _kept(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it stands in a result."""
    section = {"name": outcome.section.name, "title": outcome.section.title}
    return section | {k: v for k, v in asdict(outcome).items() if k != "section"}


def _card() -> dict[str, Any]:
    """The GPU and what drives it."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        answer = ""
    name, driver, memory = (*(part.strip() for part in answer.partition("\n")[0].split(",")), "", "")[:3]
    triton = version("triton") if find_spec("triton") else None
    return {"name": name, "driver": driver, "memory": memory, "cuda": torch.version.cuda, "triton": triton}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 all is well, 1 something is not, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)
    sections = "; ".join(f"{s.name}: {s.title}" for s in SECTIONS)

    def check_gpu() -> int:
        arguments = tyro.cli(Arguments, args=given, prog="gpu.py", description=f"{__doc__}\nSections: {sections}.")
        arguments.check()
        result: dict[str, Any] = {"benchmark": "gpu", "gpu": _card(), "sections": []}
        console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        for outcome in run(arguments):
            result["sections"].append(_kept(outcome))
            rows(result)[-1].show(console)
            if arguments.output is not None:
                draw(keep(result, "gpu.py", given, arguments.output), arguments.output.with_suffix(".png"))
        return _verdict(result)

    return run_command(check_gpu, again="run the same command again; what was found stands above, and in --output")


def _verdict(result: dict[str, Any]) -> int:
    """Say at the end what is not as it must be. Returns the exit code."""
    names = [section["name"] for section in result["sections"]]
    failed = [(n, *row) for n, table in zip(names, rows(result), strict=True) for row in table.rows if row[2] == FAILED]
    print(f"{len(failed)} not as they must be" if failed else "everything that ran is as it must be")
    for name, what, value, _, note in failed:
        print(f"  {name}: {what}{f': {value}' if value else ''}{f' ({note})' if note else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
