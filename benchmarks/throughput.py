"""Measure images/s, CPU time, memory and latency: python benchmarks/throughput.py loader|augment|step|train OPTIONS.

Every number is a median over interleaved rounds, every ratio a median of the ratios within a round. `--output` keeps
all rounds with the machine, the versions and the commit, and draws them as a picture beside the file;
`benchmarks/readme.py` puts results into the README.
"""

from __future__ import annotations

import json
import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from rich.console import Console
from rich.table import Table

from equimod.benchmarks.measure import Load, Round, Spread, interleave, ratio
from equimod.pipelines.durable import durable_file
from equimod.pipelines.policy import POLICIES
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
        self._at_least_one("rounds")
        if self.output and not self.output.parent.is_dir():
            raise UsageError(f"output={self.output}: its folder does not exist; create it first")
        if self.output and self.output.suffix != ".json":
            raise UsageError(f"output={self.output} does not end in .json; give a file name that does")

    @abstractmethod
    def plan(self) -> tuple[dict[str, Callable[[Any], Load]], Any, dict[str, Any]]:
        """The contenders, the settings that each is called with, and what else to keep of the settings."""

    @abstractmethod
    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """The ratios to show between the contenders `names`."""

    def run(self) -> dict[str, Any]:
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

    def _at_least_one(self, *settings: str) -> None:
        for setting in settings:
            value = getattr(self, setting)
            if value is not None and value <= 0:
                raise UsageError(f"{setting}={value}; give 1 or more")

    def _one_policy(self, policy: str) -> None:
        if policy not in POLICIES:
            raise UsageError(f"policy={policy} is not known; give one of {', '.join(POLICIES)}")


def _some_of(option: str, value: str, known: Sequence[str]) -> list[str]:
    names = value.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option}={value}: {unknown[0]!r} is not known; give some of {','.join(known)}")
    return names


@dataclass(frozen=True, kw_only=True)
class Loader(Benchmark):
    """Compare loaders on the same files: decoding alone, this project's backends, a torchvision DataLoader on Pillow.

    All but the first make the non-augmented image, the views' crops and the parameters. Files are read from a warm page
    cache: a first round, not counted, has read them.
    """

    name: ClassVar[str] = "loader"
    KNOWN: ClassVar[tuple[str, ...]] = ("native", "dali", "ffcv", "torchvision")
    CEILING: ClassVar[str] = "decode"

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
    images: int = 2048
    """Images a round, rounded down to whole batches; records that hold fewer repeat."""
    model_rate: float | None = None
    """Images/s that one GPU trains on: says how many of this machine's cores each loader needs to feed it."""

    def check(self) -> None:
        """Raises UsageError."""
        super().check()
        self._one_policy(self.policy)
        self._at_least_one("batch_size", "workers", "model_rate")
        _some_of("backends", self.backends, self.KNOWN)
        if self.images < self.batch_size:
            raise UsageError(f"images={self.images} is less than a batch; give {self.batch_size} or more")

    def plan(self) -> tuple[dict[str, Callable[[Any], Load]], Any, dict[str, Any]]:
        """See Benchmark."""
        from equimod.benchmarks.loaders import LOADERS, LoaderSettings
        from equimod.pipelines.records import open_records
        from equimod.pipelines.workers import available_cores

        settings = LoaderSettings(
            self.records,
            self.policy,
            self.batch_size,
            self.workers or available_cores(),
            self.images // self.batch_size * self.batch_size,
        )
        contenders = {name: LOADERS[name] for name in (*self.backends.split(","), self.CEILING)}
        return contenders, settings, {"images_in_records": len(open_records(self.records))}

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """Every loader's share of decoding alone, and native against every other one."""
        loaders = [name for name in names if name != self.CEILING]
        against = [("native", name) for name in loaders if "native" in loaders and name != "native"]
        return [(name, self.CEILING) for name in loaders] + against

    def run(self) -> dict[str, Any]:
        """See Benchmark; with a model rate, also the cores that feed one GPU."""
        result = super().run()
        if self.model_rate is not None:
            result["settings"]["model_rate"] = self.model_rate
            for measured in result["contenders"].values():
                measured["cores"] = self.model_rate * measured["cpu_ms_per_image"]["median"] / 1e3
        return result


@dataclass(frozen=True, kw_only=True)
class Augment(Benchmark):
    """Compare operators alone on uint8 crops that are already there: flip, colour, blur, solarize, normalize.

    An image counts when all its views are made. This project's operators and kornia's work on batches; torchvision's
    work image by image, on tensors and on Pillow images.
    """

    name: ClassVar[str] = "augment"
    KNOWN: ClassVar[tuple[str, ...]] = ("equimod", "kornia", "torchvision", "pillow")

    operators: str = "equimod,torchvision,pillow"
    """Operators to compare, with commas between them: equimod, kornia, torchvision, pillow."""
    policy: str = "simclr_imagenet"
    """Name of the augmentation policy that gives sizes, probabilities and strengths."""
    batch_size: int = 64
    """Images a batch."""
    images: int = 256
    """Images a round, rounded down to whole batches."""
    threads: int = 1
    """Threads of torch; one makes the contenders' CPU time comparable."""
    device: str = "cpu"
    """Where the crops lie; not run on a GPU yet."""

    def check(self) -> None:
        """Raises UsageError."""
        super().check()
        self._one_policy(self.policy)
        self._at_least_one("batch_size", "threads")
        if "kornia" in _some_of("operators", self.operators, self.KNOWN) and find_spec("kornia") is None:
            raise UsageError("operators=kornia: it is not installed; install it with pip install 'equimod[kornia]'")
        if self.images < self.batch_size:
            raise UsageError(f"images={self.images} is less than a batch; give {self.batch_size} or more")

    def plan(self) -> tuple[dict[str, Callable[[Any], Load]], Any, dict[str, Any]]:
        """See Benchmark."""
        from equimod.benchmarks.augmenters import AUGMENTERS, AugmentSettings

        images = self.images // self.batch_size * self.batch_size
        settings = AugmentSettings(self.policy, self.batch_size, images, self.threads, self.device)
        return {name: AUGMENTERS[name] for name in self.operators.split(",")}, settings, {}

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """This project's operators against every other one's."""
        return [("equimod", name) for name in names if "equimod" in names and name != "equimod"]


@dataclass(frozen=True, kw_only=True)
class Step(Benchmark):
    """Time the trainer's own step, forward, backward and optimizer, on one batch that stays on the device.

    Example: python benchmarks/throughput.py step -- --method simclr --equimod --dataset cifar10 --data records/train
    """

    name: ClassVar[str] = "step"
    PARTS: ClassVar[tuple[str, ...]] = ("step",)

    trainer: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Options of train/main.py, after `--`."""
    batches: int = 20
    """Steps a round."""
    rounds: int = 3
    """Turns that each contender takes, after one to warm up."""

    def check(self) -> None:
        """Raises UsageError."""
        from equimod.train.config import ConfigError, parse

        super().check()
        self._at_least_one("batches")
        try:
            parse(self.trainer)
        except ConfigError as error:
            raise UsageError(str(error)) from error

    def plan(self) -> tuple[dict[str, Callable[[Any], Load]], Any, dict[str, Any]]:
        """See Benchmark."""
        from equimod.benchmarks.trainers import TRAINERS, TrainSettings
        from equimod.train.config import parse

        config = parse(self.trainer)
        more = {"method": config.method, "equimod": config.equimod, "batch_size": config.batch_size}
        return {name: TRAINERS[name] for name in self.PARTS}, TrainSettings(self.trainer, self.batches), more

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """None: one contender."""
        return []

    def run(self) -> dict[str, Any]:
        """See Benchmark."""
        from equimod.train.config import ConfigError

        try:
            return super().run()
        except (ConfigError, ValueError) as error:
            raise UsageError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class Train(Step):
    """Time the trainer's step alone, its pipeline alone, and training, which is both; and training as a share of the
    slower of the two.

    Example: python benchmarks/throughput.py train -- --method simclr --equimod --dataset cifar10 --data records/train
    """

    name: ClassVar[str] = "train"
    PARTS: ClassVar[tuple[str, ...]] = ("step", "pipeline", "train")

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """Training against its parts."""
        return [("train", "step"), ("train", "pipeline")]

    def run(self) -> dict[str, Any]:
        """See Benchmark; with training as a share of its limit."""
        result = super().run()
        speeds = [{name: t["images"] / t["seconds"] for name, t in turns.items()} for turns in result["rounds"]]
        shares = Spread.of(turns["train"] / min(turns["step"], turns["pipeline"]) for turns in speeds)
        result["ratios"]["train/slower of both"] = asdict(shares)
        return result


COMMANDS: dict[str, Callable[..., Benchmark]] = {command.name: command for command in (Loader, Augment, Step, Train)}


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="throughput.py", description=__doc__, args=arguments)
    try:
        command.check()
        result = command.run()
        show(result)
        if command.output:
            from equimod.benchmarks.picture import draw
            from equimod.train.provenance import provenance

            result = {**provenance("benchmarks/throughput.py", arguments), **result}
            with durable_file(command.output) as file:
                file.write(json.dumps(result, indent=1).encode() + b"\n")
            draw(result, command.output.with_suffix(".png"))
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
