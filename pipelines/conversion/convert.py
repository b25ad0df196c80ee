"""From any source to tar records, in parallel, going on where an interrupted run stopped.

A shard is a fixed range of source positions, written by one worker process, so the result depends neither on the
number of workers nor on interruptions. Each complete shard leaves an entry in `.progress/`; a rerun takes over those
whose part of the source has the same names, labels, lengths and dates, so that a repaired image costs its own shard
only. What an earlier run left out is tried again, and what it wrote is compared with its digests.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from equimod.pipelines.conversion import Source, open_source
from equimod.pipelines.conversion.check import DamagedImageError, Shrink
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.conversion.shard_task import (
    ShardDone,
    ShardTask,
    convert_shard,
    joined,
    start_worker,
    taken_over,
)
from equimod.pipelines.conversion.tar_writer import save_manifest, write_table
from equimod.pipelines.conversion.unfinished_beton import CONTENT, ROWS
from equimod.pipelines.durable import TEMPORARY_PREFIX, FolderBusyError, durable_file, locked, remedy, remove_leftovers
from equimod.pipelines.progress import Progress, track
from equimod.pipelines.records.manifest import Manifest, Note, image_size_statistics
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.records.tar import (
    CLASSES,
    FORM,
    MANIFEST,
    NAMES,
    PROGRESS,
    SAMPLES,
    load_manifest,
)
from equimod.pipelines.stored import DamagedFileError, read_json
from equimod.pipelines.workers import SPAWN, worker_pool

OWN_NAMES = re.compile(
    rf"{re.escape(MANIFEST)}|{re.escape(CLASSES)}|{re.escape(NAMES)}|{re.escape(SAMPLES)}|shard-\d+\.(tar|idx)"
    rf"|{re.escape(PROGRESS)}|{re.escape(TEMPORARY_PREFIX)}.*|{re.escape(CONTENT)}|{re.escape(ROWS)}"
)
POLL_SECONDS = 0.2
_AHEAD = 2  # shards that are handed to each worker: few enough to watch, whatever the number of shards


class DamagedImagesError(RecordsError):
    """Images of the source that cannot be read or decoded, in `damaged`."""

    def __init__(self, damaged: list[Note]) -> None:
        self.damaged = damaged
        super().__init__(
            f"{len(damaged)} damaged image(s), the first is {damaged[0].name} ({damaged[0].reason}); repair or remove "
            "them and run the same command again, or leave them out with --on-error skip"
        )


@dataclass(frozen=True)
class Conversion:
    manifest: Manifest
    written: int  # shards written by this call; the others were in place


def _convert_shards(tasks: list[ShardTask], workers: int, total: int) -> dict[int, ShardDone]:
    """Convert shards in `workers` processes; results by shard number. `total`: images, with those of other shards."""
    before = total - sum(len(task.items) for task in tasks)
    stop, checked = SPAWN.Event(), SPAWN.Value("q", 0)
    pool = worker_pool(min(workers, len(tasks)), start_worker, stop, checked)
    results: dict[int, ShardDone] = {}
    damaged: list[Note] = []
    try:
        waiting = iter(tasks)
        pending: dict[Future[ShardDone | list[Note]], int] = {}
        with Progress("converting", "images", total=total, done=before) as progress:
            while True:
                if not damaged:
                    for task in islice(waiting, _AHEAD * workers - len(pending)):
                        pending[pool.submit(convert_shard, task)] = task.number
                if not pending:
                    break
                finished, _ = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                progress.show(before + checked.value)
                for future in finished:
                    number, result = pending.pop(future), future.result()
                    if isinstance(result, ShardDone):
                        results[number] = result
                    else:
                        damaged += result
                if damaged:
                    pending = {future: number for future, number in pending.items() if not future.cancel()}
    except BrokenProcessPool as error:
        raise RecordsError(
            "a worker process was killed, perhaps for want of memory; run the same command again to continue, "
            "with fewer --workers where it happens again"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if damaged:
        raise DamagedImagesError(sorted(damaged, key=lambda note: note.index))
    return results


def _clear(output: Path) -> None:
    """Remove an earlier conversion; the manifest first, so that the rest never passes for complete."""
    for path in sorted(output.iterdir(), key=lambda path: path.name != MANIFEST):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_plan(source: Source, output: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with another source or other settings than an interrupted run had."""
    paths = " + ".join(str(path.resolve()) for path in source.paths)
    plan = {"version": FORM[1], "source": paths, "classes": source.classes, **settings}
    path = output / PROGRESS / "plan.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        with durable_file(path) as file:
            file.write(json.dumps(plan).encode())
        return
    try:
        found = read_json(path, dict[str, Any])
    except DamagedFileError as error:
        raise RecordsError(f"{error}; start anew with --overwrite") from error
    if changed := [key for key in plan if found.get(key) != plan[key]]:
        raise RecordsError(
            f"{output} holds an interrupted conversion with another {', '.join(changed)}; repeat it as it was begun, "
            "or start anew with --overwrite"
        )


def _reduction(source: Source, shrink: Shrink | None) -> tuple[int | None, int | None]:
    """Longest side and quality of the smaller copies in the result: the source may hold smaller ones already."""
    before = source.origin
    if before and before.max_side and not (shrink and shrink.max_side < before.max_side):
        return before.max_side, before.quality
    return (shrink.max_side, shrink.quality) if shrink else (None, None)


def _listing(source: Source, listings: list[str]) -> str:
    return source.origin.listing if source.origin else hashlib.sha256("".join(listings).encode()).hexdigest()


def _finish(source: Source, output: Path, settings: ConversionSettings, done: list[ShardDone]) -> Manifest:
    """Write what turns the shards into records, the manifest last."""
    table, remarks = joined(done)
    if not len(table):
        raise RecordsError(
            f"none of the {len(source.items)} images of {source.path} can be decoded; give another source"
        )
    taken = np.zeros(source.items[-1].index + 1, dtype=bool)
    taken[table["index"]] = True
    files = write_table(output, source.classes, table, (item.name for item in source.items if taken[item.index]))
    shards = tuple(part.shard for part in done if part.shard)
    stems = {Path(shard.name).stem for shard in shards}
    for path in output.glob("shard-*"):
        if path.stem not in stems:  # of an interrupted run over a longer source
            path.unlink()
    before = source.origin
    max_side, quality = _reduction(source, settings.shrink)
    manifest = Manifest(
        source=before.source if before else source.name,
        listing=_listing(source, [part.listing for part in done]),
        max_side=max_side,
        quality=quality,
        raw=_pixels(source),
        shard_size=settings.shard_size,
        samples=len(table),
        classes=len(source.classes),
        total_bytes=sum(shard.bytes for shard in shards),
        image_size=image_size_statistics(np.stack([table["width"], table["height"]], axis=1)),
        shards=shards,
        remarks=remarks,
        left_out=(before.left_out if before else ()) + tuple(note for part in done for note in part.left_out),
        files=files,
    )
    save_manifest(manifest, output)
    shutil.rmtree(output / PROGRESS)
    return manifest


def _pixels(source: Source) -> bool:
    return bool(source.origin and source.origin.raw)


def fits(manifest: Manifest, source: Source, tasks: list[ShardTask], settings: ConversionSettings, raw: bool) -> bool:
    """Whether finished records are what these tasks would give; `raw` as in Manifest.

    What was left out is tried again.
    """
    before = source.origin
    new_gaps = manifest.left_out[len(before.left_out) if before else 0 :]
    return (
        (manifest.max_side, manifest.quality) == _reduction(source, settings.shrink)
        and manifest.raw == raw
        and not (new_gaps and settings.on_error == "fail")
        and manifest.listing == _listing(source, [task.listing() for task in _compared(tasks)])
        and not any(_loads(source, note, settings) for note in new_gaps)
    )


def _loads(source: Source, note: Note, settings: ConversionSettings) -> bool:
    """Whether an image that was left out can be read now."""
    item = next((item for item in source.items if item.index == note.index), None)
    if item is None:
        return False
    try:
        source.reader.load(item, settings.encoding)
    except DamagedImageError:
        return False
    return True


def _compared(tasks: list[ShardTask]) -> Iterator[ShardTask]:
    """The tasks, showing how many were compared with what is there: all files of the source are looked at for that."""
    return track(tasks, len(tasks), "comparing", "shards")


def other_records(output: Path) -> RecordsError:
    """The error about an output that holds another conversion."""
    return RecordsError(
        f"{output} holds records of another source or with other settings; choose another OUTPUT, "
        "or replace them with --overwrite"
    )


def shard_tasks(source: Source, output: Path, settings: ConversionSettings) -> list[ShardTask]:
    """The shards of a conversion: ranges of `shard_size` positions in the source."""
    return [
        ShardTask(source.reader, output, number, list(items), settings.on_error, settings.encoding)
        for number, items in groupby(source.items, lambda item: item.index // settings.shard_size)
    ]


def convert(source: Source | Path, output: Path, settings: ConversionSettings) -> Conversion:
    """Convert `source`, or what `open_source` finds at a path, into tar records in the folder `output`.

    It goes on where an interrupted run stopped.
    Raises RecordsError where source or output is unsuitable or the disk is full, DamagedImagesError under "fail".
    """
    if isinstance(source, Path):
        refuse_inside(source, output)
        source = open_source(source)
    for path in source.paths:
        refuse_inside(path, output)
    with lock_output(output, output):
        return convert_locked(source, output, settings)


@contextmanager
def lock_output(folder: Path, output: Path) -> Iterator[None]:
    """Make `folder` where it is missing, and lock it against other conversions into `output`.

    Raises RecordsError where another one has the lock or, inside the block too, where the system refuses to write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            yield
    except FolderBusyError as error:
        raise RecordsError(str(error)) from error
    except OSError as error:
        raise RecordsError(
            f"{output} cannot be written: {error.strerror}; {remedy(error)} and run the same command again to continue"
        ) from error


def convert_locked(source: Source, output: Path, settings: ConversionSettings) -> Conversion:
    """`convert` into a folder that is locked."""
    if foreign := sorted(path.name for path in output.iterdir() if not OWN_NAMES.fullmatch(path.name)):
        raise RecordsError(f"{output} holds {foreign[0]}, which is no part of records; choose an empty folder")
    if settings.overwrite:
        _clear(output)
    tasks = shard_tasks(source, output, settings)
    if (output / MANIFEST).exists():
        manifest = load_manifest(output)
        if manifest.shard_size != settings.shard_size or not fits(manifest, source, tasks, settings, _pixels(source)):
            raise other_records(output)
        return Conversion(manifest, written=0)
    size = asdict(settings.shrink) if settings.shrink else None
    _check_plan(source, output, {"shard size": settings.shard_size, "size": size, "raw": settings.raw})
    remove_leftovers(output)
    remove_leftovers(output / PROGRESS)
    with ThreadPoolExecutor(settings.workers) as pool:
        parts = track(pool.map(taken_over, tasks), len(tasks), "comparing", "shards")
        done = {task.number: part for task, part in zip(tasks, parts, strict=True) if part}
    todo = [task for task in tasks if task.number not in done]
    if todo:
        done |= _convert_shards(todo, settings.workers, len(source.items))
    manifest = _finish(source, output, settings, [done[task.number] for task in tasks])
    return Conversion(manifest, written=len(todo))


def refuse_inside(source: Path, output: Path) -> None:
    """Raise RecordsError where `output` is the source, or lies inside it."""
    if output.resolve().is_relative_to(source.resolve()):
        raise RecordsError(f"{output} lies inside the source {source}; choose a place outside it")
