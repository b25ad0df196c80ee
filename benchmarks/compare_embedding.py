"""`throughput.py embed`: `equimod embed` beside its encoder alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from equimod.benchmarks.benchmark import CPU, MEMORY, SPEED, Benchmark, Pair
from equimod.benchmarks.measure import Workload
from equimod.pipelines.errors import UsageError
from equimod.train.evaluation.table import Table, spread

TITLES = {"embed": "`equimod embed`", "encoder": "the encoder alone, on a batch in memory"}


@dataclass(frozen=True)
class EmbedSettings:
    """What both contenders are called with."""

    encoder: str  # for open_encoder
    data: Path
    threads: int  # of torch


@dataclass(frozen=True, kw_only=True)
class Embed(Benchmark):
    """Compare embedding a data set with its encoder alone. On the CPU."""

    name: ClassVar[str] = "embed"

    encoder: str
    """Folder of a run or of an export, or timm:NAME."""
    data: Path
    """Records, or images in a folder."""
    threads: int = 2
    """Threads of torch."""
    rounds: int = 3
    """Turns that each contender takes, after one to warm up; each goes over all of the data."""

    def check(self) -> None:
        """Raises UsageError."""
        super().check()
        self.at_least_one("threads")
        if not self.data.exists():
            raise UsageError(f"data={self.data} is not there; give records, or a folder of images")

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """See Benchmark."""
        return {"embed": embedded, "encoder": encoded}, EmbedSettings(self.encoder, self.data, self.threads), {}

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """See Benchmark."""
        cells = []
        for name, title in TITLES.items():
            measured = result["contenders"][name]
            cpu = f"{measured['cpu_ms_per_image']['median']:.2f}"
            peak = f"{measured['peak_bytes'] / 2**20:,.0f}"
            cells.append([title, spread(measured["images_per_second"], 0), cpu, peak])
        return [Table(["", SPEED, CPU, MEMORY], cells)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Benchmark."""
        turns, threads = result["rounds"], result["settings"]["threads"]
        return (
            f"{turns[0]['embed']['images']:,} images, {threads} threads, {len(turns)} interleaved rounds; embed makes "
            f"{spread(result['ratios']['embed/encoder'], 2)} of the encoder's images/s."
        )

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """See Benchmark."""
        return [("embed", "encoder")]


def embedded(settings: EmbedSettings) -> Workload:
    """Embed all of the data into a file that is thrown away."""
    import torch

    from equimod.pipelines.images import open_images
    from equimod.train.distributed import DistInfo
    from equimod.train.embedding.run import embed
    from equimod.train.opened_encoder import open_encoder

    torch.set_num_threads(settings.threads)
    opened, records = open_encoder(settings.encoder), open_images(settings.data)
    alone = DistInfo(0, 0, 1, torch.device("cpu"))

    def epoch(number: int) -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "features.npz"
            embed(opened, records, out, source=settings.data, precision="fp32", dist_info=alone)
        yield len(records)

    return epoch


def encoded(settings: EmbedSettings) -> Workload:
    """Encode as many images as there are, the same batch each time."""
    import torch

    from equimod.pipelines.images import open_images
    from equimod.train.embedding.blocks import BATCH_SIZE
    from equimod.train.evaluation.features import FrozenEncoder
    from equimod.train.opened_encoder import open_encoder

    torch.set_num_threads(settings.threads)
    opened, count = open_encoder(settings.encoder), len(open_images(settings.data))
    encoder, size = FrozenEncoder(opened.encoder, None), opened.x.size
    images = torch.rand(BATCH_SIZE, 3, size, size).contiguous(memory_format=torch.channels_last)

    def epoch(number: int) -> Iterator[int]:
        for start in range(0, count, BATCH_SIZE):
            batch = images[: count - start]
            encoder(batch)
            yield len(batch)

    return epoch
