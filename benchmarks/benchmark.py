"""What every throughput benchmark shares: contenders that take turns, their table, the result, the command line."""

from __future__ import annotations

import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro
from rich.console import Console
from rich.table import Table

from equimod.benchmarks.measure import Round, Spread, Workload, interleave, ratio
from equimod.pipelines.records.protocol import RecordsError

Pair = tuple[str, str]
"""Two contenders whose ratio of images/s is shown."""


class UsageError(Exception):
    """A setting that cannot be measured: the message gives its name, its value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """Contenders that take turns."""

    name: ClassVar[str]

    rounds: int = 5
    """Turns that each contender takes, after one to warm up."""
    output: Path | None = None
    """JSON file for the result; a PNG of the same name is drawn beside it."""

    def check(self) -> None:
        """Raises UsageError."""
        self.at_least_one("rounds")
        if self.output and not self.output.parent.is_dir():
            raise UsageError(f"output={self.output}: its folder does not exist; create it first")
        if self.output and self.output.suffix != ".json":
            raise UsageError(f"output={self.output} does not end in .json; give a file name that does")

    @abstractmethod
    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """The contenders, the settings that each is called with, and what else to keep of the settings."""

    @abstractmethod
    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """The ratios to show between the contenders `names`."""

    def measure(self) -> dict[str, Any]:
        """The result, but for where it comes from. Raises UsageError, RecordsError."""
        from equimod.pipelines.backends import BackendUnavailableError

        contenders, settings, more = self.plan()
        rounds: list[dict[str, Round]] = []
        try:
            for turns in interleave(contenders, settings, self.rounds):
                speeds = (f"{name} {turns[name].images_per_second:.0f}" for name in contenders)
                what = f"round {len(rounds)}/{self.rounds}" if rounds else "warm-up with start"
                print(f"{what}, images/s: {', '.join(speeds)}", file=sys.stderr, flush=True)
                rounds.append(turns)
        except BackendUnavailableError as error:
            raise UsageError(str(error)) from error
        kept = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
        summary = summarise(rounds[1:], rounds[0], self.pairs(list(contenders)))
        return {"benchmark": self.name, "settings": {**kept, **more}, **summary}

    def at_least_one(self, *settings: str) -> None:
        for setting in settings:
            value = getattr(self, setting)
            if value is not None and value <= 0:
                raise UsageError(f"{setting}={value}; give 1 or more")


def summarise(rounds: Sequence[dict[str, Round]], start: dict[str, Round], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Per contender images/s, CPU-ms an image, peak memory in bytes and seconds to a first batch; ratios; rounds.

    A first batch is timed twice: in the warm-up `start`, with opening, imports and compilation, and in later rounds.
    """
    contenders = {
        name: {
            "images_per_second": asdict(Spread.of(turns[name].images_per_second for turns in rounds)),
            "cpu_ms_per_image": asdict(Spread.of(turns[name].cpu_ms for turns in rounds)),
            "peak_bytes": max(turns[name].peak_bytes for turns in rounds),
            "start_seconds": start[name].first_batch_seconds,
            "first_batch_seconds": statistics.median(turns[name].first_batch_seconds for turns in rounds),
        }
        for name in sorted(rounds[0])
    }
    ratios = {f"{a}/{b}": asdict(ratio(rounds, a, b)) for a, b in pairs}
    turns = [{name: asdict(turn) for name, turn in turns.items()} for turns in rounds]
    return {"contenders": contenders, "ratios": ratios, "rounds": turns}


def show(result: dict[str, Any]) -> None:
    """Print the table of a result."""
    rate = result["settings"].get("model_rate")
    cores = [f"cores for {rate:,.0f} images/s"] if rate else []
    table = Table(
        "contender",
        "images/s",
        "lowest",
        "highest",
        "CPU-ms an image",
        *cores,
        "peak memory, MiB",
        "first batch, s",
        "after start, s",
    )
    for name, measured in result["contenders"].items():
        speed = measured["images_per_second"]
        table.add_row(
            name,
            *(f"{speed[key]:.0f}" for key in ("median", "low", "high")),
            f"{measured['cpu_ms_per_image']['median']:.2f}",
            *([f"{measured['cores']:.1f}"] if rate else []),
            f"{measured['peak_bytes'] / 2**20:.0f}",
            f"{measured['first_batch_seconds']:.2f}",
            f"{measured['start_seconds']:.1f}",
        )
    console = Console()
    console.print(table)
    for name, value in result["ratios"].items():
        console.print(f"{name}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})")


def run_benchmark(
    commands: Mapping[str, Callable[..., Benchmark]], script: str, about: str | None, argv: Sequence[str]
) -> int:
    """Run the command line of a script. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    command = tyro.extras.subcommand_cli_from_dict(dict(commands), prog=script, description=about, args=argv)
    try:
        command.check()
        result = command.measure()
        show(result)
        if command.output:
            from equimod.benchmarks.picture import draw
            from equimod.benchmarks.result import keep

            draw(keep(result, script, argv, command.output), command.output.with_suffix(".png"))
    except UsageError as error:
        return _fail(error, 2)
    except (RecordsError, OSError, BrokenProcessPool) as error:
        return _fail(error, 1)
    return 0


def _fail(error: Exception, code: int) -> int:
    # An error of a DataLoader's worker carries its traceback as text: the last line says what happened.
    print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
    return code
