"""Compare everything that runs and records hold with its digests: `equimod verify PATH...`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from equimod.pipelines.codec import JPEG_START, PNG_START
from equimod.pipelines.cores import available_cores
from equimod.pipelines.decode import decode_image, read_image
from equimod.pipelines.durable import complete
from equimod.pipelines.errors import EquimodError, UsageError
from equimod.pipelines.images import open_images
from equimod.pipelines.progress import Progress, say
from equimod.pipelines.records import Records, RecordsError
from equimod.pipelines.records.beton import BetonRecords
from equimod.pipelines.records.folder import Labels
from equimod.pipelines.records.manifest import Shard
from equimod.pipelines.records.protocol import StoredImage
from equimod.pipelines.records.tar import TarRecords
from equimod.pipelines.stored import DIGESTS, DamagedFileError, read_bytes
from equimod.train.command import run_command

CHECKPOINTS = "checkpoints"
SHOWN = 20  # faults of a path that are told one by one
_TOGETHER = 256  # samples that a thread checks at a time


class DamageError(EquimodError):
    """Something is not as it was written: the message says how much of what was asked for."""


@dataclass(frozen=True)
class Arguments:
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Folders of runs, checkpoints, records; folders, lists and archives of images."""
    labels: Labels = "auto"
    """What labels the images of a folder have, as in training."""


def faults_of(path: Path, labels: Labels = "auto") -> Iterator[str]:
    """What is wrong with a run, a checkpoint, records or images, in a line each."""
    try:
        if (path / CHECKPOINTS).is_dir():
            yield from _of_run(path)
        elif (path / DIGESTS).exists():
            yield from _of_checkpoint(path)
        else:
            yield from damaged(open_images(path, labels), Counter())
    except EquimodError as error:
        yield str(error)


def damaged(records: Records, kinds: Counter[str]) -> Iterator[str]:
    """Read all of records, on all cores: what cannot be, in a line each. Images that have no checksum are decoded.

    Counts what samples are stored as in `kinds`.
    """
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="equimod-verify")
    try:
        with Progress("verifying", "images", total=len(records)) as progress:
            for rows, faults, found in pool.map(lambda part: _check(records, *part), _parts(records)):
                yield from faults
                kinds.update(found)
                progress.show(rows.stop)
    finally:
        pool.shutdown(cancel_futures=True)
    if isinstance(records, TarRecords | BetonRecords):
        try:
            records.verify_names()
        except RecordsError as error:
            yield str(error)


def _parts(records: Records) -> Iterator[tuple[range, Shard | None]]:
    """Samples that are checked one after the other; with their shard, which the system still holds afterwards."""
    if isinstance(records, TarRecords):
        start = 0
        for shard in records.manifest.shards:
            yield range(start, start := start + shard.samples), shard
        return
    for start in range(0, len(records), _TOGETHER):
        yield range(start, min(start + _TOGETHER, len(records))), None


def _check(records: Records, rows: range, shard: Shard | None) -> tuple[range, list[str], Counter[str]]:
    """What is wrong with samples and with their shard, and what sound ones are stored as, beside the samples."""
    faults, kinds = [], Counter[str]()
    for position in rows:
        try:
            content = read_image(records, position)
            if records.manifest is None:
                decode_image(records, position, content)
        except RecordsError as error:
            faults.append(str(error))
        else:
            kinds[_kind(content)] += 1
    if shard and isinstance(records, TarRecords):
        try:
            records.verify_shard(shard)
        except RecordsError as error:
            faults.append(str(error))
    return rows, faults, kinds


def _kind(content: StoredImage) -> str:
    if not isinstance(content, bytes | memoryview):
        return "pixels"
    start = bytes(content[:8])
    return "JPEG" if start[:2] == JPEG_START else "PNG" if start == PNG_START else "other"


def _of_run(folder: Path) -> Iterator[str]:
    from equimod.train.config import read_run  # these for runs alone: torch takes seconds to import
    from equimod.train.evaluation.scores import read_scores
    from equimod.train.report import damaged_lines

    for checkpoint in complete(folder / CHECKPOINTS):
        yield from _of_checkpoint(checkpoint)
    for read in (read_run, read_scores, _read_encoder):
        try:
            read(folder)
        except EquimodError as error:
            yield str(error)
    metrics = folder / "metrics.jsonl"
    if metrics.exists() and (count := damaged_lines(metrics)):
        yield f"{metrics} has {count:,} damaged line(s)"


def _of_checkpoint(path: Path) -> Iterator[str]:
    from equimod.train.checkpoint import open_checkpoint

    try:
        open_checkpoint(path)
    except EquimodError as error:
        yield str(error)


def _read_encoder(folder: Path) -> None:
    """Compare the encoder of a run that is done with that of its last checkpoint. Raises DamagedFileError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from equimod.train.checkpoint import MODEL, Checkpoint, first_sound

    path = folder / "encoder.safetensors"
    if not path.exists():
        return
    try:
        encoder = load(read_bytes(path))
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged ({error})") from error
    checkpoint = first_sound(folder / CHECKPOINTS, lambda found: Checkpoint.open(found).check(), _nothing)
    model = checkpoint.tensors(MODEL) if checkpoint else {}
    expected = {name.removeprefix("encoder."): model[name] for name in model if name.startswith("encoder.")}
    same = encoder.keys() == expected.keys() and all(torch.equal(encoder[name], expected[name]) for name in expected)
    if not same:
        raise DamagedFileError(f"{path} is not the encoder of the newest sound checkpoint")


def _nothing(_: str) -> None:
    pass


def _verify(arguments: Arguments) -> None:
    if not arguments.paths:
        raise UsageError("no PATH is given; name the runs, records or images to verify")
    bad = 0
    for path in arguments.paths:
        count = 0
        for count, fault in enumerate(faults_of(path, arguments.labels), 1):
            if count <= SHOWN:
                say(f"damaged: {fault}")
        if count > SHOWN:
            say(f"damaged: {path}: {count - SHOWN:,} more")
        if not count:
            say(f"sound: {path}")
        bad += bool(count)
    if bad:
        raise DamageError(f"{bad} of {len(arguments.paths)} are damaged, as said above")


def main() -> int:
    """Run the command line. Returns the exit code: 0 sound, 1 damaged, 2 wrong usage, 130 Ctrl-C."""
    return run_command(
        lambda: _verify(tyro.cli(Arguments, description=__doc__)), again="run the same command to start over"
    )


if __name__ == "__main__":
    sys.exit(main())
