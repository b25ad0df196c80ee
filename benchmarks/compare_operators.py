"""`throughput.py augment`: operators on crops that are already there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from equimod.benchmarks.benchmark import CPU, SPEED, Benchmark, Pair, one_policy, some_of
from equimod.benchmarks.measure import Workload
from equimod.benchmarks.titles import AUGMENTER_TITLES
from equimod.pipelines.errors import UsageError
from equimod.train.evaluation.table import Table, spread


@dataclass(frozen=True, kw_only=True)
class Augment(Benchmark):
    """Compare operators alone on uint8 crops that are already there: flip, colour, blur, solarize, normalize.

    An image counts when all its views are made. This project's operators (one_by_one: each over the whole batch) and
    kornia's work on batches; torchvision's image by image, on tensors and on Pillow images. This project draws before,
    as its pipeline does in another thread; the others draw as they go.
    """

    name: ClassVar[str] = "augment"
    KNOWN: ClassVar[tuple[str, ...]] = ("equimod", "one_by_one", "kornia", "torchvision", "pillow")

    operators: str = "equimod,torchvision,pillow"
    """Operators to compare, with commas between them: equimod, one_by_one, kornia, torchvision, pillow."""
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
        one_policy(self.policy)
        self.at_least_one("batch_size", "threads")
        if "kornia" in some_of("operators", self.operators, self.KNOWN) and find_spec("kornia") is None:
            raise UsageError("operators=kornia: it is not installed; install it with pip install 'equimod[kornia]'")
        if self.images < self.batch_size:
            raise UsageError(f"images={self.images} is less than a batch; give {self.batch_size} or more")

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """See Benchmark."""
        from equimod.benchmarks.augmenters import AUGMENTERS, AugmentSettings

        images = self.images // self.batch_size * self.batch_size
        settings = AugmentSettings(self.policy, self.batch_size, images, self.threads, self.device)
        return {name: AUGMENTERS[name] for name in self.operators.split(",")}, settings, {}

    def on_gpu(self) -> bool:
        """See Benchmark."""
        return self.device.startswith("cuda")

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """See Benchmark."""
        rows = []
        for name, title in AUGMENTER_TITLES.items():
            if name in result["contenders"]:
                measured = result["contenders"][name]
                times = result["ratios"].get(f"equimod/{name}", {"median": 1.0})["median"]
                cpu = f"{measured['cpu_ms_per_image']['median']:.1f}"
                rows.append([title, spread(measured["images_per_second"], 1), cpu, f"{times:.2f}"])
        return [Table(["operators", SPEED, CPU, "equimod is faster by"], rows)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Benchmark."""
        settings = result["settings"]
        return (
            f"All views of the policy {settings['policy']} make an image. Flip, colour, blur, solarize and normalize "
            f"of uint8 crops that are there, batches of {settings['batch_size']}, {settings['threads']} thread(s), "
            f"{len(result['rounds'])} interleaved rounds of {settings['images']:,} images. What is applied was drawn "
            "before by this project's, and is drawn as they go by the others."
        )

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """This project's operators against every other one's."""
        return [("equimod", name) for name in names if name != "equimod"] if "equimod" in names else []
