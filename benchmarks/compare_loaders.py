"""`throughput.py loader` and `views`: loaders on the same files, up to crops and up to whole views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from equimod.benchmarks.benchmark import CPU, MEMORY, SPEED, Benchmark, Pair, one_policy, some_of
from equimod.benchmarks.measure import Spread, Workload
from equimod.benchmarks.titles import LOADER_TITLES
from equimod.pipelines.errors import UsageError
from equimod.train.evaluation.table import Table, spread

PEERS = ("spdl", "torchcodec", "kornia_rs", "litdata")
"""Loaders that are neither this project's nor torchvision's, by the name of what is imported."""


@dataclass(frozen=True, kw_only=True)
class Loader(Benchmark):
    """Compare loaders on the same files: decoding alone, this project's backends, a torchvision DataLoader on Pillow,
    and others of today (extra peers).

    All but the first make the non-augmented image, the views' crops and the parameters. Files are read from a warm page
    cache: a first round, not counted, has read them.
    """

    name: ClassVar[str] = "loader"
    KNOWN: ClassVar[tuple[str, ...]] = ("native", "dali", "ffcv", "torchvision", *PEERS)
    CEILING: ClassVar[str] = "decode"
    AUGMENTED: ClassVar[bool] = False

    records: Path
    """Records, or an ImageFolder tree."""
    backends: str = "native,torchvision"
    """Loaders to compare, with commas between them: native, dali, ffcv, torchvision, spdl, torchcodec, kornia_rs,
    litdata."""
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
        one_policy(self.policy)
        self.at_least_one("batch_size", "workers", "model_rate")
        for name in some_of("backends", self.backends, self.KNOWN):
            if name in PEERS and find_spec(name) is None:
                raise UsageError(f"backends={name}: it is not installed; install it with pip install 'equimod[peers]'")
        if self.images < self.batch_size:
            raise UsageError(f"images={self.images} is less than a batch; give {self.batch_size} or more")

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """See Benchmark."""
        from equimod.benchmarks.loaders import LOADERS, LoaderSettings
        from equimod.benchmarks.peers import LOADERS_OF_PEERS
        from equimod.pipelines.cores import available_cores
        from equimod.pipelines.records import open_records

        settings = LoaderSettings(
            self.records,
            self.policy,
            self.batch_size,
            self.workers or available_cores(),
            self.images // self.batch_size * self.batch_size,
            self.AUGMENTED,
        )
        contenders = {name: (LOADERS | LOADERS_OF_PEERS)[name] for name in (*self.backends.split(","), self.CEILING)}
        return contenders, settings, {"images_in_records": len(open_records(self.records))}

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """See Benchmark."""
        ratios, rate = result["ratios"], result["settings"].get("model_rate")
        columns = ["loader", SPEED, "of decode alone", CPU, MEMORY, "first batch, s", "after start, s"]
        columns += [f"cores for {rate:,.0f} images/s"] if rate else []
        rows = []
        for name, title in LOADER_TITLES.items():
            if name in result["contenders"]:
                measured = result["contenders"][name]
                row = [
                    title,
                    spread(measured["images_per_second"], 0),
                    f"{ratios[f'{name}/{cls.CEILING}']['median']:.2f}" if name != cls.CEILING else "1",
                    f"{measured['cpu_ms_per_image']['median']:.2f}",
                    f"{measured['peak_bytes'] / 2**20:,.0f}",
                    f"{measured['first_batch_seconds']:.2f}",
                    f"{measured['start_seconds']:.1f}",
                ]
                rows.append(row + ([f"{measured['cores']:.1f}"] if rate else []))
        return [Table(columns, rows)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Benchmark."""
        settings, ratios = result["settings"], result["ratios"]
        times = {name.partition("/")[2]: r["median"] for name, r in ratios.items() if name.startswith("native/")}
        others = ", ".join(f"{value:.2f} times {name}" for name, value in times.items() if name != cls.CEILING)
        return (
            f"The native backend loads {times[cls.CEILING]:.2f} times what decoding alone does, {others}. Medians of "
            f"{len(result['rounds'])} interleaved rounds of {settings['images']:,} images, policy "
            f"{settings['policy']}, batches of {settings['batch_size']}, {settings['workers']} workers, warm page "
            "cache. Memory is resident memory, summed over processes, pages that they share counted in each. CPU-ms an "
            "image is also the number of cores that 1,000 images/s need. A first batch is that of an epoch; after "
            "start, that of the first epoch, with imports, opening and compilation."
        )

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
    KNOWN: ClassVar[tuple[str, ...]] = ("native", "dali", "ffcv", "torchvision")
    AUGMENTED: ClassVar[bool] = True

    policy: str = "byol_imagenet"
    """Name of the augmentation policy; this one has every operator."""

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """See Benchmark."""
        contenders = result["contenders"]
        rows = [
            [
                title,
                spread(contenders[name]["images_per_second"], 0),
                f"{contenders[name]['cpu_ms_per_image']['median']:.2f}",
            ]
            for name, title in LOADER_TITLES.items()
            if name in contenders
        ]
        return [Table(["up to whole views", SPEED, CPU], rows)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Benchmark."""
        settings, share = result["settings"], result["ratios"]["CPU-ms: native/torchvision"]
        return (
            f"The native backend and this project's operators take {spread(share, 2)} of the CPU time of Pillow and "
            f"torchvision. Medians of {len(result['rounds'])} interleaved rounds of {settings['images']:,} images, "
            f"policy {settings['policy']}, batches of {settings['batch_size']}, {settings['workers']} workers."
        )

    def measure(self) -> dict[str, Any]:
        """See Benchmark; with the share of the CPU time that Pillow and torchvision take."""
        result = super().measure()
        of_rounds = [{name: t["cpu_seconds"] / t["images"] for name, t in turns.items()} for turns in result["rounds"]]
        if {"native", "torchvision"} <= of_rounds[0].keys():
            shares = Spread.of(cpu["native"] / cpu["torchvision"] for cpu in of_rounds)
            result["ratios"]["CPU-ms: native/torchvision"] = asdict(shares)
        return result
