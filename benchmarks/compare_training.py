"""`throughput.py step` and `train`: the trainer's step, alone and on what its pipeline makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import tyro

from equimod.benchmarks.benchmark import CPU, SPEED, Benchmark, Pair
from equimod.benchmarks.measure import Spread, Workload
from equimod.pipelines.errors import UsageError
from equimod.train.command import refused_settings
from equimod.train.evaluation.table import Table, spread


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

    def on_gpu(self) -> bool:
        """See Benchmark."""
        from equimod.train.config import parse
        from equimod.train.distributed import training_device

        return training_device(parse(self.trainer).system.device).type == "cuda"

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """None: one contender."""
        return []

    def measure(self) -> dict[str, Any]:
        """See Benchmark."""
        with refused_settings():
            return super().measure()

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """See Benchmark."""
        rows = []
        for name, title in (("step", "step alone"), ("pipeline", "pipeline alone"), ("train", "training")):
            if name in result["contenders"]:
                measured = result["contenders"][name]
                speed, cpu = measured["images_per_second"], measured["cpu_ms_per_image"]
                rows.append([title, spread(speed, 0), f"{cpu['median']:.2f}", f"{measured['first_batch_seconds']:.2f}"])
        return [Table(["what", SPEED, CPU, "first batch, s"], rows)]


@dataclass(frozen=True, kw_only=True)
class Train(Step):
    """Time the trainer's step alone, its pipeline alone, and training, which is both; and training as a share of the
    slower of the two.

    Example: python benchmarks/throughput.py train -- --method simclr --equimod --dataset cifar10 --data records/train
    """

    name: ClassVar[str] = "train"
    PARTS: ClassVar[tuple[str, ...]] = ("step", "pipeline", "train")

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Benchmark."""
        settings, both = result["settings"], " + EquiMod" * result["settings"]["equimod"]
        return (
            f"Training runs at {spread(result['ratios']['train/slower of both'], 2)} of the slower of the two alone; "
            f"on a machine without a GPU both want the same cores. {settings['method']}{both}, batches of "
            f"{settings['batch_size']}, {len(result['rounds'])} interleaved rounds of {settings['batches']} steps."
        )

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
