"""Measure images/s, CPU time and memory: python benchmarks/throughput.py loader --records RECORDS.

Every number is a median over interleaved rounds, every ratio a median of the ratios within a round; `--output` keeps
all rounds with the machine, the versions and the commit. `benchmarks/readme.py` puts results into the README.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from equimod.benchmarks.measure import Round, Spread, interleave, ratio
from equimod.pipelines.durable import durable_file
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records.protocol import RecordsError

CEILING = "decode"
LOADERS = ("native", "dali", "ffcv", "torchvision")


class UsageError(Exception):
    """A setting that cannot be measured: the message gives its name, its value and the remedy."""


@dataclass(frozen=True)
class Loader:
    """Compare loaders on the same files: decoding alone, this project's backends, a torchvision DataLoader on Pillow.

    All but the first make the non-augmented image, the views' crops and the parameters. Files are read from a warm page
    cache: a first round, not counted, has read them.
    """

    records: Path
    """Records, or an ImageFolder tree."""
    backends: str = "native,torchvision"
    """Loaders to compare, with commas between them: native, dali, ffcv, torchvision."""
    policy: str = "simclr_imagenet"
    """Name of the augmentation policy that gives sizes and crops."""
    batch_size: int = 64
    """Images a batch."""
    workers: int | None = None
    """Threads, or worker processes of the DataLoader; none: the cores of this machine."""
    rounds: int = 5
    """Turns that each contender takes, after one to warm up."""
    images: int = 2048
    """Images a round, rounded down to whole batches; records that hold fewer repeat."""
    output: Path | None = None
    """JSON file for the result."""

    def check(self) -> None:
        """Raises UsageError."""
        if self.policy not in POLICIES:
            raise UsageError(f"policy={self.policy} is not known; give one of {', '.join(POLICIES)}")
        for name in ("batch_size", "workers", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}; give 1 or more")
        unknown = [name for name in self.names() if name not in LOADERS]
        if unknown:
            raise UsageError(f"backends={self.backends}: {unknown[0]!r} is not known; give some of {','.join(LOADERS)}")
        if self.images < self.batch_size:
            raise UsageError(f"images={self.images} is less than a batch; give {self.batch_size} or more")
        if self.output and not self.output.parent.is_dir():
            raise UsageError(f"output={self.output}: its folder does not exist; create it first")

    def names(self) -> list[str]:
        """The loaders to compare, in order."""
        return list(dict.fromkeys(self.backends.split(",")))

    def run(self) -> dict[str, Any]:
        """The result, but for where it comes from. Raises RecordsError."""
        from equimod.benchmarks.contenders import CONTENDERS, LoaderSettings
        from equimod.pipelines.backends import BackendUnavailableError
        from equimod.pipelines.records import open_records
        from equimod.pipelines.workers import available_cores

        available = len(open_records(self.records))
        settings = LoaderSettings(
            self.records,
            self.policy,
            self.batch_size,
            self.workers or available_cores(),
            self.images // self.batch_size * self.batch_size,
        )
        contenders = {name: CONTENDERS[name] for name in (*self.names(), CEILING)}
        rounds: list[dict[str, Round]] = []
        try:
            for turns in interleave(contenders, settings, self.rounds):
                speeds = (f"{name} {turns[name].images_per_second:.0f}" for name in contenders)
                what = f"round {len(rounds)}/{self.rounds}" if rounds else "warm-up with start"
                print(f"{what}, images/s: {', '.join(speeds)}", file=sys.stderr, flush=True)
                rounds.append(turns)
        except BackendUnavailableError as error:
            raise UsageError(str(error)) from error
        return {
            "benchmark": "loader",
            "settings": {**asdict(settings), "records": str(self.records), "images_in_records": available},
            **summarise(rounds[1:], rounds[0]),
        }


def summarise(rounds: Sequence[dict[str, Round]], start: dict[str, Round]) -> dict[str, Any]:
    """Per contender images/s, CPU-ms an image, peak memory in bytes and what its start took; ratios of speed; rounds.

    The start is the first round's time beyond that of a later one: opening, imports, compilation.
    """
    contenders = {
        name: {
            "images_per_second": asdict(Spread.of(turns[name].images_per_second for turns in rounds)),
            "cpu_ms_per_image": asdict(Spread.of(turns[name].cpu_ms for turns in rounds)),
            "peak_bytes": max(turns[name].peak_bytes for turns in rounds),
            "start_seconds": max(0.0, start[name].seconds - statistics.median(t[name].seconds for t in rounds)),
        }
        for name in sorted(rounds[0])
    }
    loaders = [name for name in rounds[0] if name != CEILING]
    pairs = [(name, CEILING) for name in loaders] + [("native", name) for name in loaders if "native" in loaders]
    ratios = {f"{a}/{b}": asdict(ratio(rounds, a, b)) for a, b in pairs if a != b}
    turns = [{name: asdict(turn) for name, turn in turns.items()} for turns in rounds]
    return {"contenders": contenders, "ratios": ratios, "rounds": turns}


def show(result: dict[str, Any]) -> None:
    """Print the table of a result."""
    table = Table("contender", "images/s", "lowest", "highest", "CPU-ms an image", "peak memory, MiB", "start, s")
    for name, measured in result["contenders"].items():
        speed, cpu = measured["images_per_second"], measured["cpu_ms_per_image"]["median"]
        numbers = [f"{speed[key]:.0f}" for key in ("median", "low", "high")]
        memory = f"{measured['peak_bytes'] / 2**20:.0f}"
        table.add_row(name, *numbers, f"{cpu:.2f}", memory, f"{measured['start_seconds']:.1f}")
    console = Console()
    console.print(table)
    for name, value in result["ratios"].items():
        console.print(f"{name}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = tyro.extras.subcommand_cli_from_dict(
        {"loader": Loader}, prog="throughput.py", description=__doc__, args=arguments
    )
    try:
        command.check()
        result = command.run()
        show(result)
        if command.output:
            from equimod.benchmarks.provenance import provenance

            result = {**provenance("benchmarks/throughput.py", arguments), **result}
            with durable_file(command.output) as file:
                file.write(json.dumps(result, indent=1).encode() + b"\n")
    except UsageError as error:
        return _fail(error, 2)
    except (RecordsError, OSError, BrokenProcessPool) as error:
        return _fail(error, 1)
    return 0


def _fail(error: Exception, code: int) -> int:
    # An error of a DataLoader's worker carries its traceback as text: the last line says what happened.
    print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
