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

import tyro
from rich.console import Console
from rich.table import Table

from equimod.benchmarks.gpu_check.picture import draw
from equimod.benchmarks.gpu_check.sections import NAMES, SECTIONS, Outcome, run_section
from equimod.benchmarks.result import keep

WIDTH = 118  # columns, where the output is no terminal


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

    def fault(self) -> str | None:
        """What is wrong with the options, None where nothing is."""
        unknown = [name for name in self.only if name not in NAMES]
        if unknown:
            return f"--only {unknown[0]}: no such section; give some of {', '.join(NAMES)}"
        if self.minutes <= 0:
            return f"--minutes {self.minutes:g}: give more than 0"
        if self.data is not None and not self.data.is_dir():
            return f"--data {self.data} is no folder; make one with tools/pack_gpu_check.py, or leave it out"
        if self.device == "cpu" and self.output is not None:
            return "--device cpu gives no result to store; leave out --output"
        if self.output is not None and self.output.suffix != ".json":
            return f"--output {self.output} does not end in .json; give a file name that does"
        if self.output is not None and not self.output.parent.is_dir():
            return f"--output {self.output}: its folder does not exist; create it first"
        return None


def rows(section: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """The table of a section of a result: what was looked at, the value, whether it is as it must be, a note."""
    for finding in section["findings"]:
        state = {True: "ok", False: "FAILED", None: ""}[finding["met"]]
        yield finding["name"], _value(finding["value"], finding["unit"]), state, finding["note"]
    for name, state in (("fault", "FAILED"), ("left_out", "left out")):
        if section[name]:
            yield section["title"], "", state, section[name]


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


def show(section: dict[str, Any], console: Console) -> None:
    """Print a section's table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for width in (56, 30, 8, 40):
        table.add_column(max_width=width, overflow="fold")
    for row in rows(section):
        table.add_row(*row)
    console.print(f"[bold]{section['name']}[/]: {section['title']}, {section['seconds']:.0f} s")
    console.print(table)


def _kept(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it stands in a result."""
    section = {"name": outcome.section.name, "title": outcome.section.title}
    return section | {k: v for k, v in asdict(outcome).items() if k != "section"}


def _card() -> dict[str, Any]:
    """The GPU and what drives it."""
    import torch

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
    arguments = tyro.cli(Arguments, args=given, prog="gpu.py", description=f"{__doc__}\nSections: {sections}.")
    fault = arguments.fault() or _no_gpu(arguments.device)
    if fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"benchmark": "gpu", "gpu": _card(), "sections": []}
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    try:
        for outcome in run(arguments):
            result["sections"].append(_kept(outcome))
            show(result["sections"][-1], console)
            if arguments.output is not None:
                draw(keep(result, "gpu.py", given, arguments.output), arguments.output.with_suffix(".png"))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted; what was found before is above" + " and in --output" * bool(arguments.output), file=sys.stderr
        )
        return 130
    failed = [(s["name"], *row) for s in result["sections"] for row in rows(s) if row[2] == "FAILED"]
    print(f"{len(failed)} not as they must be" if failed else "everything that ran is as it must be")
    for name, what, value, _, note in failed:
        print(f"  {name}: {what}{f': {value}' if value else ''}{f' ({note})' if note else ''}")
    return int(bool(failed))


def _no_gpu(device: str) -> str | None:
    import torch

    if device == "cpu" or torch.cuda.is_available():
        return None
    return "torch sees no GPU; tools/doctor.py says what is missing, --device cpu runs this check's own code on toys"


if __name__ == "__main__":
    sys.exit(main())
