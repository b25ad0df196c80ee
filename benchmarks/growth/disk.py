"""How much is read from the disk, and in how many requests, where the images do not fit into memory.

The process that reads them has as much memory as is said, by a cgroup (v1, as root), and may ask for no more than so
many requests a second. Linux only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from equimod.benchmarks.growth.section import ScaleError, Section, resident_bytes, sent_by
from equimod.benchmarks.growth.synthetic import Format, made_records
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.train.evaluation.table import Table

CGROUPS = Path("/sys/fs/cgroup")
_MORE = 2**26  # bytes, of batches that come and go


@dataclass(frozen=True, kw_only=True)
class Disk(Section):
    """Read epochs of images that do not fit into memory, through the pipeline."""

    images: int = 40_000
    """Images."""
    kilobytes: int = 100
    """Size of an image."""
    format: Format = "tar"
    """Of the records."""
    memory: float = 0.25
    """Memory for images, as a share of all of them; 0: as much as there is."""
    requests: int | None = None
    """Requests a second that the disk answers; none: as many as it can."""
    window: int | None = None
    """--shuffle-window of the training."""
    batch_size: int = 256
    """Images of a batch."""
    epochs: int = 4
    """Epochs."""

    def measure(self) -> dict[str, Any]:
        """What each epoch read."""
        path = made_records(self.folder, self.images, self.kilobytes, self.format)
        size = int(open_records(path).length.sum())
        number = self.folder.stat().st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        groups = _Cgroups() if self.memory or self.requests else None
        found: list[dict[str, Any]] = []
        with groups.made() if groups else nullcontext():
            if groups and self.requests:
                groups.allow_requests(device, self.requests)
            for epoch in islice(sent_by(_read, path, self, groups, device), self.epochs):
                found.append(epoch)
                print(f"epoch {len(found)}: {epoch['images_per_second']:,.0f} images/s", flush=True)
        order = "random" if self.window is None else "window"
        return {
            "benchmark": f"disk-{order}" if groups else "epochs",
            "settings": self.options(),
            "data_bytes": size,
            "epochs": found,
        }

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """A row an epoch; of a long run, the first and every fifth."""
        images, epochs = result["settings"]["images"], result["epochs"]
        step = 5 if len(epochs) > 10 else 1
        cells = [
            [
                str(number),
                f"{epoch['images_per_second']:,.0f}",
                f"{epoch['bytes'] / result['data_bytes']:.2f}",
                "–" if epoch["requests"] is None else f"{epoch['requests'] / images:.3f}",
                f"{epoch['resident_bytes'] / 2**20:,.0f}",
                str(epoch["descriptors"]),
            ]
            for number, epoch in enumerate(epochs, 1)
            if number == 1 or number % step == 0
        ]
        titles = [
            "epoch",
            "images/s",
            "read, of the data",
            "requests an image",
            "memory of the process, MiB",
            "open files",
        ]
        return [Table(titles, cells)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Section."""
        settings, size = result["settings"], result["data_bytes"]
        order = f"shuffled in windows of {settings['window']:,}" if settings["window"] else "in random order"
        share, requests = settings["memory"], settings["requests"]
        memory = f"{share:.0%} of that as memory for images" if share else "as much memory as there is"
        slow = f", a disk that answers {requests:,} requests a second" if requests else ""
        return (
            f"{settings['images']:,} synthetic images of {settings['kilobytes']} KiB, {size / 2**20:,.0f} MiB of "
            f"{settings['format']} records, {order}, batches of {settings['batch_size']}, {memory}{slow}; decoded, "
            "cropped and resized to 32 pixels."
        )


class _Cgroups:
    """Groups of the kernel that the reading process is put into: one for its memory, one for its requests."""

    def __init__(self) -> None:
        self._folders = [CGROUPS / kind / f"equimod-{os.getpid()}" for kind in ("memory", "blkio")]
        self.memory, self._blkio = self._folders

    @contextmanager
    def made(self) -> Iterator[None]:
        """Raises ScaleError where they cannot be made."""
        try:
            for folder in self._folders:
                folder.mkdir()
            yield
        except OSError as error:
            raise ScaleError(f"no cgroup can be made ({error}); run as root where there are cgroups v1") from error
        finally:
            for folder in self._folders:
                if folder.exists():
                    folder.rmdir()

    def enter(self) -> None:
        """Put this process into them."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def allow_memory(self, more: int) -> None:
        """Limit the memory to what is in use and so many bytes."""
        used = int((self.memory / "memory.usage_in_bytes").read_text())
        (self.memory / "memory.limit_in_bytes").write_text(str(used + more))

    def allow_requests(self, device: str, requests: int) -> None:
        """Limit the requests a second to a disk."""
        (self._blkio / "blkio.throttle.read_iops_device").write_text(f"{device} {requests}")


def _read(send: Connection, path: Path, settings: Disk, groups: _Cgroups | None, device: str) -> None:
    """Read the epochs, in groups of the kernel, and send what each of them took."""
    if groups:
        groups.enter()

    def build() -> Pipeline:
        policy, records = POLICIES["simclr_cifar10"], open_records(path)
        return build_pipeline(records, policy, batch_size=settings.batch_size, seed=0, window=settings.window)

    next(build().decoded(0))  # what the process needs beside the images
    _drop(path)
    if groups and settings.memory:
        groups.allow_memory(_MORE + int(settings.memory * int(open_records(path).length.sum())))
    pipeline = build()
    for epoch in range(settings.epochs):
        began, bytes_before, requests_before = time.perf_counter(), _bytes_read(), _requests(device)
        images = sum(len(batch) for batch in pipeline.decoded(epoch))
        seconds, requests = time.perf_counter() - began, _requests(device)
        send.send(
            {
                "images_per_second": images / seconds,
                "bytes": _bytes_read() - bytes_before,
                "requests": None if requests is None or requests_before is None else requests - requests_before,
                "resident_bytes": resident_bytes(),
                "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            }
        )


def _drop(path: Path) -> None:
    """Have the system forget what it holds of the records."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _bytes_read() -> int:
    """What this process had the disk read."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def _requests(device: str) -> int | None:
    """Reads that a disk has answered, of all processes; None where the system does not tell."""
    major, minor = device.split(":")
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if fields[:2] == [major, minor]:
            return int(fields[3])
    return None
