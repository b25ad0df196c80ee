"""One shard of a conversion: what there is to do, what is left when it is done, and the worker process that does it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.conversion.check import DamagedImageError, Encoding
from equimod.pipelines.conversion.settings import OnError
from equimod.pipelines.conversion.source import Item, Reader
from equimod.pipelines.conversion.tar_writer import describe_shard, write_shard
from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import one_line
from equimod.pipelines.records.manifest import Note, Remark, Shard
from equimod.pipelines.records.tar import PROGRESS, SAMPLE
from equimod.pipelines.stored import DamagedFileError, decode_sealed, read_bytes, seal


@dataclass(frozen=True)
class ShardTask:
    """One shard: a range of the source."""

    reader: Reader
    output: Path
    number: int
    items: list[Item]
    on_error: OnError
    encoding: Encoding

    @property
    def entry(self) -> Path:
        return self.output / PROGRESS / f"{self.number:06d}.json"

    def listing(self) -> str:
        """Digest of how the source's files look from outside."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps([item.index, item.name, item.label, *self.reader.mark(item)]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardDone:
    """A complete shard: its entry in `.progress/`, which has a digest of itself."""

    listing: str
    shard: Shard | None  # None where every image was left out
    samples: str  # entries of tar.SAMPLE in base64: those of millions of images are held at the end
    remarks: tuple[Remark, ...]  # on its samples, which say which
    left_out: tuple[Note, ...]

    @property
    def table(self) -> NDArray[np.void]:
        """Its samples, as samples.npy has them."""
        return np.frombuffer(base64.b64decode(self.samples), SAMPLE)

    def save(self, path: Path) -> None:
        with durable_file(path) as file:
            file.write(seal(asdict(self)))


def joined(done: list[ShardDone]) -> tuple[NDArray[np.void], tuple[Remark, ...]]:
    """The tables of the shards as one, and what is to be said of its samples, numbered anew."""
    numbers: dict[tuple[str | None, tuple[str, ...]], int] = {}
    tables = []
    for part in done:
        new = [0, *(numbers.setdefault((one.reencoded, one.harmless), len(numbers) + 1) for one in part.remarks)]
        tables.append(part.table.copy())
        tables[-1]["remark"] = np.array(new)[tables[-1]["remark"]]
    table = np.concatenate(tables)
    count = np.bincount(table["remark"], minlength=len(numbers) + 1).tolist()
    return table, tuple(Remark(*said, count[number]) for said, number in numbers.items())


def taken_over(task: ShardTask) -> ShardDone | None:
    """The shard as an earlier run left it; None where there is none, it is damaged or does not fit the task, or where
    images were left out, which may have been repaired."""
    try:
        done = decode_sealed(read_bytes(task.entry), ShardDone, str(task.entry))
        if done.left_out or done.listing != task.listing():
            return None
        if done.shard and done.shard != describe_shard(task.output, task.number, len(done.table)):
            return None
    except (DamagedFileError, OSError, ValueError):
        return None
    return done


class _Stopped(Exception):
    """The conversion was interrupted; the shard at work is given up."""


class _Refused(Exception):
    """The shard holds damaged images and is not to be written."""


class _Worker:
    """State of a worker process, set when it starts."""

    stop: Event
    checked: Synchronized[int]  # images, over all workers


def start_worker(stop: Event, checked: Synchronized[int]) -> None:
    """Tell this worker process where to hear that it should stop, and to count the images it has checked."""
    _Worker.stop, _Worker.checked = stop, checked


def convert_shard(task: ShardTask) -> ShardDone | list[Note]:
    """Write a shard and its entry; under "fail" the damaged images instead, where there are any."""
    task.entry.unlink(missing_ok=True)
    listing = task.listing()
    remarks: dict[tuple[str | None, tuple[str, ...]], int] = {}
    damaged: list[Note] = []
    try:
        with write_shard(task.output, task.number) as writer:
            for item in task.items:
                if _Worker.stop.is_set():
                    raise _Stopped
                try:
                    image = task.reader.load(item, task.encoding)
                except DamagedImageError as error:
                    damaged.append(Note(item.index, one_line(item.name), str(error)))
                else:
                    said = image.reencoded, image.harmless
                    writer.add(item, image, remarks.setdefault(said, len(remarks) + 1) if any(said) else 0)
                with _Worker.checked.get_lock():
                    _Worker.checked.value += 1
            if damaged and task.on_error == "fail":
                raise _Refused
    except _Refused:
        return damaged
    shard = describe_shard(task.output, task.number, len(writer.rows)) if writer.rows else None
    table = np.array(writer.rows, dtype=SAMPLE)
    count = np.bincount(table["remark"], minlength=len(remarks) + 1).tolist()
    found = tuple(Remark(*said, count[number]) for said, number in remarks.items())
    done = ShardDone(listing, shard, base64.b64encode(table.tobytes()).decode(), found, tuple(damaged))
    done.save(task.entry)
    return done
