"""What ranks take to open records of many images and to load from them, and the conversion before."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from equimod.benchmarks.growth.section import Section, peak_bytes, resident_bytes, sent_by
from equimod.benchmarks.growth.synthetic import Format, make_records, path_of
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import fingerprint
from equimod.train.evaluation.table import Table


@dataclass(frozen=True, kw_only=True)
class Ranks(Section):
    """Convert many small images where that has not been done, open them in several processes, load from them."""

    images: int = 1_281_167
    """Images."""
    kilobytes: int = 1
    """Size of an image."""
    format: Format = "tar"
    """Of the records."""
    ranks: int = 4
    """Processes, each a rank of one training."""
    batch_size: int = 4096
    """Images of a global batch."""
    steps: int = 20
    """Steps of each."""

    def measure(self) -> dict[str, Any]:
        """What each part took."""
        path = path_of(self.folder, self.images, self.kilobytes, self.format)
        result: dict[str, Any] = {"benchmark": f"ranks-{self.format}", "settings": self.options()}
        if not path.exists():
            result["conversion"] = next(sent_by(_convert, path, self))
        ranks = [sent_by(_load, path, self, rank) for rank in range(self.ranks)]
        with ThreadPoolExecutor(self.ranks) as pool:  # all at a time: they share what the system can share
            return {**result, "ranks": list(pool.map(next, ranks))}

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """A row a rank."""
        cells = [
            [
                str(number),
                f"{rank['open_seconds']:.1f}",
                f"{rank['first_batch_seconds']:.1f}",
                f"{rank['records_bytes'] / 2**20:,.0f}",
                f"{rank['resident_bytes'] / 2**20:,.0f}",
                f"{rank['peak_bytes'] / 2**20:,.0f}",
                f"{rank['images_per_second']:,.0f}",
            ]
            for number, rank in enumerate(result["ranks"])
        ]
        titles = ["rank", "opened in, s", "first batch after, s", "memory of the records, MiB"]
        return [Table([*titles, "of the process, MiB", "at most, MiB", "images/s"], cells)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Section."""
        settings = result["settings"]
        text = (
            f"{settings['images']:,} synthetic images of {settings['kilobytes']} KiB in {settings['format']} records, "
            f"global batches of {settings['batch_size']:,}."
        )
        if made := result.get("conversion"):
            text += (
                f" Converted at {settings['images'] / made['seconds']:,.0f} images/s; the process that hands out the "
                f"work took {made['peak_bytes'] / 2**20:,.0f} MiB at most."
            )
        return text


def _convert(send: Connection, path: Path, settings: Ranks) -> None:
    began = time.perf_counter()
    make_records(path, settings.images, settings.kilobytes)
    send.send({"seconds": time.perf_counter() - began, "peak_bytes": peak_bytes()})


def _load(send: Connection, path: Path, settings: Ranks, rank: int) -> None:
    """Open the records as a training does, and send what that and a few steps took."""
    before, began = resident_bytes(), time.perf_counter()
    records = open_records(path)
    fingerprint(records)
    opened = {"open_seconds": time.perf_counter() - began, "records_bytes": resident_bytes() - before}
    pipeline = build_pipeline(
        records,
        POLICIES["simclr_cifar10"],
        batch_size=settings.batch_size,
        seed=0,
        rank=rank,
        world_size=settings.ranks,
        workers=max(1, (os.cpu_count() or 1) // settings.ranks),
    )
    batches = pipeline.decoded(0)
    next(batches)
    first = time.perf_counter()
    images = sum(len(batch) for batch in islice(batches, settings.steps - 1))
    found = {
        "first_batch_seconds": first - began,
        "images_per_second": images / (time.perf_counter() - first),
        "resident_bytes": resident_bytes(),
        "peak_bytes": peak_bytes(),
    }
    send.send(opened | found)
