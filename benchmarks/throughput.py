"""Measure images/s, CPU time, memory, latency: python benchmarks/throughput.py loader|views|augment|step|train OPTIONS.

Every number is a median over interleaved rounds, every ratio a median of the ratios within a round. `--output` keeps
all rounds with the machine, the versions and the commit, and draws them as a picture beside the file;
`benchmarks/readme.py` puts results into the README.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from equimod.benchmarks.benchmark import Benchmark, Pair, UsageError, run_benchmark
from equimod.benchmarks.measure import Spread, Workload
from equimod.pipelines.policy import POLICIES


def _some_of(option: str, value: str, known: Sequence[str]) -> list[str]:
    names = value.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option}={value}: {unknown[0]!r} is not known; give some of {','.join(known)}")
    return names


def _one_policy(policy: str) -> None:
    if policy not in POLICIES:
        raise UsageError(f"policy={policy} is not known; give one of {', '.join(POLICIES)}")


@dataclass(frozen=True, kw_only=True)
class Loader(Benchmark):
    """Compare loaders on the same files: decoding alone, this project's backends, a torchvision DataLoader on Pillow.

    All but the first make the non-augmented image, the views' crops and the parameters. Files are read from a warm page
    cache: a first round, not counted, has read them.
    """

    name: ClassVar[str] = "loader"
    KNOWN: ClassVar[tuple[str, ...]] = ("native", "dali", "ffcv", "torchvision")
    CEILING: ClassVar[str] = "decode"
    AUGMENTED: ClassVar[bool] = False

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
        _one_policy(self.policy)
        self.at_least_one("batch_size", "workers", "model_rate")
        _some_of("backends", self.backends, self.KNOWN)
        if self.images < self.batch_size:
            raise UsageError(f"images={self.images} is less than a batch; give {self.batch_size} or more")

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
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
            self.AUGMENTED,
        )
        contenders = {name: LOADERS[name] for name in (*self.backends.split(","), self.CEILING)}
        return contenders, settings, {"images_in_records": len(open_records(self.records))}

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """Every loader's share of decoding alone, and native against every other one."""
        loaders = [name for name in names if name != self.CEILING]
        against = [("native", name) for name in loaders if "native" in loaders and name != "native"]
        return [(name, self.CEILING) for name in loaders] + against

    def measure(self) -> dict[str, Any]:
        """See Benchmark; with a model rate, also the cores that feed one GPU."""
        result = super().measure()
        if self.model_rate is not None:
            result["settings"]["model_rate"] = self.model_rate
            for measured in result["contenders"].values():
                measured["cores"] = self.model_rate * measured["cpu_ms_per_image"]["median"] / 1e3
        return result


@dataclass(frozen=True, kw_only=True)
class Views(Loader):
    """Compare the same loaders up to whole views, all on the CPU: flip, colour, blur, solarize, normalize as well.

    An image counts when the non-augmented image and all its views are made, as float32.
    """

    name: ClassVar[str] = "views"
    AUGMENTED: ClassVar[bool] = True

    policy: str = "byol_imagenet"
    """Name of the augmentation policy; this one has every operator."""

    def measure(self) -> dict[str, Any]:
        """See Benchmark; with the share of the CPU time that Pillow and torchvision take."""
        result = super().measure()
        of_rounds = [{name: t["cpu_seconds"] / t["images"] for name, t in turns.items()} for turns in result["rounds"]]
        if {"native", "torchvision"} <= of_rounds[0].keys():
            shares = Spread.of(cpu["native"] / cpu["torchvision"] for cpu in of_rounds)
            result["ratios"]["CPU-ms: native/torchvision"] = asdict(shares)
        return result


@dataclass(frozen=True, kw_only=True)
class Augment(Benchmark):
    """Compare operators alone on uint8 crops that are already there: flip, colour, blur, solarize, normalize.

    An image counts when all its views are made. This project's operators (compiled: by torch.compile; one_by_one: each
    over the whole batch) and kornia's work on batches; torchvision's image by image, on tensors and on Pillow images.
    """

    name: ClassVar[str] = "augment"
    KNOWN: ClassVar[tuple[str, ...]] = ("equimod", "compiled", "one_by_one", "kornia", "torchvision", "pillow")

    operators: str = "equimod,torchvision,pillow"
    """Operators to compare, with commas between them: equimod, compiled, one_by_one, kornia, torchvision, pillow."""
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
        _one_policy(self.policy)
        self.at_least_one("batch_size", "threads")
        if "kornia" in _some_of("operators", self.operators, self.KNOWN) and find_spec("kornia") is None:
            raise UsageError("operators=kornia: it is not installed; install it with pip install 'equimod[kornia]'")
        if self.images < self.batch_size:
            raise UsageError(f"images={self.images} is less than a batch; give {self.batch_size} or more")

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """See Benchmark."""
        from equimod.benchmarks.augmenters import AUGMENTERS, AugmentSettings

        images = self.images // self.batch_size * self.batch_size
        settings = AugmentSettings(self.policy, self.batch_size, images, self.threads, self.device)
        return {name: AUGMENTERS[name] for name in self.operators.split(",")}, settings, {}

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """This project's operators against every other one's, in both forms."""
        return [(ours, name) for ours in ("equimod", "compiled") if ours in names for name in names if name != ours]


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
        self.at_least_one("batches")
        try:
            parse(self.trainer)
        except ConfigError as error:
            raise UsageError(str(error)) from error

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """See Benchmark."""
        from equimod.benchmarks.trainers import TRAINERS, TrainSettings
        from equimod.train.config import parse

        config = parse(self.trainer)
        more = {"method": config.method, "equimod": config.equimod, "batch_size": config.batch_size}
        return {name: TRAINERS[name] for name in self.PARTS}, TrainSettings(self.trainer, self.batches), more

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """None: one contender."""
        return []

    def measure(self) -> dict[str, Any]:
        """See Benchmark."""
        from equimod.train.config import ConfigError

        try:
            return super().measure()
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

    def measure(self) -> dict[str, Any]:
        """See Benchmark; with training as a share of its limit."""
        result = super().measure()
        speeds = [{name: t["images"] / t["seconds"] for name, t in turns.items()} for turns in result["rounds"]]
        shares = Spread.of(turns["train"] / min(turns["step"], turns["pipeline"]) for turns in speeds)
        result["ratios"]["train/slower of both"] = asdict(shares)
        return result


_COMMANDS = (Loader, Views, Augment, Step, Train)
COMMANDS: dict[str, Callable[..., Benchmark]] = {command.name: command for command in _COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    return run_benchmark(COMMANDS, "throughput.py", __doc__, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
