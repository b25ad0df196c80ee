"""How fast images come from a URL: over the loopback, where the network is not the limit, and from the blocks kept."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from equimod.benchmarks.growth.file_server import served
from equimod.benchmarks.growth.section import Section, sent_by
from equimod.benchmarks.growth.synthetic import Format, made_records
from equimod.benchmarks.measure import Spread
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.train.evaluation.table import Table, spread

_ROUNDS = ("in place", "from a URL, first", "from a URL, again")


@dataclass(frozen=True, kw_only=True)
class AtUrl(Section):
    """Read epochs of images from a server on this machine, and from the folder itself."""

    images: int = 20_000
    """Images."""
    kilobytes: int = 100
    """Size of an image."""
    format: Format = "tar"
    """Of the records."""
    window: int = 2_560
    """--shuffle-window of the training."""
    batch_size: int = 256
    """Images of a batch."""
    rounds: int = 3
    """Rounds, each with an empty folder of blocks."""

    def measure(self) -> dict[str, Any]:
        """Images a second of each way, in every round."""
        path = made_records(self.folder, self.images, self.kilobytes, self.format)
        rounds: dict[str, list[float]] = {name: [] for name in _ROUNDS}
        server = sent_by(_serve, path.parent)  # which ends with this function
        url = next(server)
        for _ in range(self.rounds):
            with tempfile.TemporaryDirectory(dir=self.folder) as blocks:
                for name in _ROUNDS:
                    where = path if name == _ROUNDS[0] else Path(f"{url}/{path.name}")
                    rounds[name].append(next(sent_by(_load, where, self, Path(blocks))))
                    print(f"{name}: {rounds[name][-1]:,.0f} images/s", flush=True)
        size = int(open_records(path).length.sum())
        return {"benchmark": "at-url", "settings": self.options(), "data_bytes": size, "images_per_second": rounds}

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """A row a way."""
        found = result["images_per_second"]
        mebibytes = result["data_bytes"] / result["settings"]["images"] / 2**20
        cells = []
        for name, rates in found.items():
            every, share = Spread.of(rates), Spread.of(a / b for a, b in zip(rates, found[_ROUNDS[0]], strict=True))
            cells.append([name, spread(asdict(every), 0), f"{every.median * mebibytes:,.0f}", f"{share.median:.2f}"])
        return [Table(["images", "images/s (lowest to highest round)", "MiB/s", "of those in place"], cells)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Section."""
        settings = result["settings"]
        return (
            f"{settings['images']:,} synthetic images of {settings['kilobytes']} KiB in {settings['format']} records, "
            f"shuffled in windows of {settings['window']:,}, batches of {settings['batch_size']}, medians of "
            f"{settings['rounds']} rounds; decoded, cropped and resized to 32 pixels. The server, one process in "
            "Python, shares the cores."
        )


def _serve(send: Connection, folder: Path) -> None:
    with served(folder) as files:
        send.send(files.url)
        while True:
            time.sleep(3600)


def _load(send: Connection, path: Path, settings: AtUrl, blocks: Path) -> None:
    os.environ["EQUIMOD_CACHE"] = str(blocks)
    pipeline = build_pipeline(
        open_records(path),
        POLICIES["simclr_cifar10"],
        batch_size=settings.batch_size,
        seed=0,
        window=settings.window,
    )
    began = time.perf_counter()
    images = sum(len(batch) for batch in pipeline.decoded(0))
    send.send(images / (time.perf_counter() - began))
