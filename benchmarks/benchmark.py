"""What every throughput benchmark shares: contenders that take turns, their table, the result, the command line."""

from __future__ import annotations

import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import tyro

from equimod.benchmarks.measure import GPUClock, HostClock, Round, Spread, Workload, interleave, ratio
from equimod.benchmarks.titles import DISTRIBUTIONS
from equimod.pipelines.errors import UsageError
from equimod.pipelines.policy import POLICIES
from equimod.train.command import run_command
from equimod.train.evaluation.table import Table, spread

SPEED, MEMORY, CPU = "images/s (lowest to highest round)", "peak memory, MiB", "CPU-ms an image"
"""Columns that several benchmarks have."""

Pair = tuple[str, str]
"""Two contenders whose ratio of images/s is shown."""


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

    def on_gpu(self) -> bool:
        """Whether contenders work on a GPU."""
        return False

    def measure(self) -> dict[str, Any]:
        """The result, but for where it comes from. Raises UsageError, RecordsError."""
        contenders, settings, more = self.plan()
        rounds: list[dict[str, Round]] = []
        gpu = self.on_gpu()
        clock = GPUClock if gpu else HostClock
        for turns in interleave(contenders, settings, self.rounds, alone=gpu, clock=clock):
            speeds = (f"{name} {turns[name].images_per_second:.0f}" for name in contenders)
            what = f"round {len(rounds)}/{self.rounds}" if rounds else "warm-up with start"
            print(f"{what}, images/s: {', '.join(speeds)}", file=sys.stderr, flush=True)
            rounds.append(turns)
        kept = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
        summary = summarise(rounds[1:], rounds[0], self.pairs(list(contenders)))
        return {"benchmark": self.name, "settings": {**kept, **more}, "packages": _packages(contenders), **summary}

    @classmethod
    @abstractmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """The tables of a result, for the screen and for documents."""

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """What stands under the tables in a document."""
        return f"Medians of {len(result['rounds'])} interleaved rounds."

    def at_least_one(self, *settings: str) -> None:
        for setting in settings:
            value = getattr(self, setting)
            if value is not None and value <= 0:
                raise UsageError(f"{setting}={value}; give 1 or more")


def _packages(contenders: Iterable[str]) -> dict[str, str]:
    """Packages that contenders bring, with their versions."""
    packages = {}
    for name in contenders:
        with suppress(KeyError, PackageNotFoundError):  # has none of its own, or was installed in another way
            packages[DISTRIBUTIONS[name]] = version(DISTRIBUTIONS[name])
    return packages


def some_of(option: str, value: str, known: Sequence[str]) -> list[str]:
    """The names in `value`, with commas between them. UsageError for one that is not `known`."""
    names = value.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option}={value}: {unknown[0]!r} is not known; give some of {','.join(known)}")
    return names


def one_policy(policy: str) -> None:
    """UsageError for a policy that is not there."""
    if policy not in POLICIES:
        raise UsageError(f"policy={policy} is not known; give one of {', '.join(POLICIES)}")


def summarise(rounds: Sequence[dict[str, Round]], start: dict[str, Round], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Per contender images/s, CPU-ms an image, peaks of memory in bytes and seconds to a first batch; ratios; rounds.

    A first batch is timed twice: in the warm-up `start`, with opening, imports and compilation, and in later rounds.
    """
    contenders = {
        name: {
            "images_per_second": asdict(Spread.of(turns[name].images_per_second for turns in rounds)),
            "cpu_ms_per_image": asdict(Spread.of(turns[name].cpu_ms for turns in rounds)),
            "peak_bytes": max(turns[name].peak_bytes for turns in rounds),
            "gpu_peak_bytes": max(turns[name].gpu_peak_bytes or 0 for turns in rounds) or None,
            "start_seconds": start[name].first_batch_seconds,
            "first_batch_seconds": statistics.median(turns[name].first_batch_seconds for turns in rounds),
        }
        for name in start
    }
    ratios = {f"{a}/{b}": asdict(ratio(rounds, a, b)) for a, b in pairs}
    turns = [{name: asdict(turn) for name, turn in turns.items()} for turns in rounds]
    return {"contenders": contenders, "ratios": ratios, "rounds": turns}


def run_benchmark(
    commands: Mapping[str, Callable[..., Benchmark]], script: str, about: str | None, argv: Sequence[str]
) -> int:
    """Run the command line of a script. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""

    def run() -> None:
        command = tyro.extras.subcommand_cli_from_dict(dict(commands), description=about, args=argv)
        command.check()
        result = command.measure()
        for table in command.rows(result):
            table.show()
        for name, value in result["ratios"].items():
            print(f"{name}: {spread(value, 2)}")
        if command.output:
            from equimod.benchmarks.picture import draw
            from equimod.benchmarks.result import keep

            draw(keep(result, script, argv, command.output), command.output.with_suffix(".png"))

    return run_command(run, again="run the same command again")
