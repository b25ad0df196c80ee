"""One bit of any file of a checkpoint or of records is changed: nothing is read that was not written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from equimod.benchmarks.campaigns import toys
from equimod.benchmarks.campaigns.campaign import Trial
from equimod.pipelines.decode import decode_sample
from equimod.pipelines.durable import POINTER, kept
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.tar import TarRecords
from equimod.train.checkpoint import MODEL, OPTIMIZER, Checkpoint, CheckpointError, first_sound
from equimod.train.run_folder import CHECKPOINTS

REFUSED, UNCHANGED, FORMER = "refused", "read as it was", "the one before it taken, and said"
HEAD = 6000  # bytes that hold the descriptors of a small .beton at its start, and its table at its end


@contextmanager
def damaged(path: Path, damage: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """What `damage` makes of a file lies in its place inside; None removes it."""
    content = path.read_bytes()
    changed = damage(content)
    try:
        if changed is None:
            path.unlink()
        else:
            path.write_bytes(changed)
        yield
    finally:
        path.write_bytes(content)


def flip(content: bytes, place: int, bit: int) -> bytes:
    """`content` with a bit of its byte at `place` changed."""
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def checkpoint_flips(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Flip a bit of the newer one of two checkpoints, or of the file that names them."""
    run = _Run(folder)
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = run.files[number % len(run.files)]
        place, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
        with damaged(path, partial(flip, place=place, bit=bit)):
            yield run.trial(f"bit {bit} of byte {place} of {path.parent.name}/{path.name} flipped", unchanged=True)


def fallback(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Cut, empty, overwrite or remove a file of the newer one of two checkpoints, or the one that names them."""
    run = _Run(folder)
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = run.files[number % len(run.files)]
        kind = list(_DAMAGES)[int(rng.integers(len(_DAMAGES)))]
        with damaged(path, partial(_DAMAGES[kind], rng)):
            yield run.trial(f"{path.parent.name}/{path.name} {kind}", unchanged=path.name == POINTER)


def _overwritten(rng: np.random.Generator, content: bytes) -> bytes:
    start = int(rng.integers(len(content)))
    length = min(len(content) - start, int(rng.integers(1, 4097)))
    return content[:start] + rng.bytes(length) + content[start + length :]


_DAMAGES: dict[str, Callable[[np.random.Generator, bytes], bytes | None]] = {
    "cut short": lambda rng, content: content[: int(rng.integers(len(content)))],
    "emptied": lambda rng, content: b"",
    "overwritten in part": _overwritten,
    "made longer": lambda rng, content: content + rng.bytes(16),
    "removed": lambda rng, content: None,
}


class _Run:
    """A run of two checkpoints, and what is right to read from them."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = toys.run(folder) / CHECKPOINTS
        self.newest, self.former = kept(self.checkpoints)
        self.files = [*sorted(self.newest.iterdir()), self.checkpoints / POINTER]
        self.content = {path: self._read(path) for path in (self.newest, self.former)}

    def trial(self, what: str, *, unchanged: bool) -> Trial:
        """What a resume makes of the checkpoints as they are now; where `unchanged`, the newest may be right."""
        said: list[str] = []
        try:
            found = first_sound(self.checkpoints, lambda path: (path, self._read(path)), said.append)
        except CheckpointError as error:
            return Trial(REFUSED, f"{what}: no checkpoint is taken, though one is sound ({error})")
        except Exception as error:
            return Trial("another error", f"{what}: {error!r}")
        assert found is not None
        path, content = found
        if content != self.content[path]:
            return Trial("silently wrong", f"{what}: other weights, settings or position are read")
        if path == self.newest:
            return Trial(UNCHANGED, "" if unchanged else f"{what}: it is not noticed")
        return Trial(FORMER, "" if said else f"{what}: the one before it is taken without a word")

    @staticmethod
    def _read(path: Path) -> str:
        checkpoint = Checkpoint.open(path).check()
        digest = hashlib.sha256(f"{checkpoint.state} {checkpoint.config}".encode())
        for name in (MODEL, OPTIMIZER):
            for key, tensor in sorted(checkpoint.tensors(name).items()):
                digest.update(key.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


def record_flips(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Flip a bit of any file of shards, of a .beton of JPEGs, or of one of pixels; each has as many trials."""
    records = toys.records(folder)
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder / "tree")
    expected = {path: everything(path) for path in records.values()}
    files = {name: sorted(path.iterdir()) if path.is_dir() else [path] for name, path in records.items()}
    for number in range(count):
        name = list(records)[number % len(records)]
        path = files[name][number // len(records) % len(files[name])]
        place, bit = _place(path, rng), int(rng.integers(8))
        with damaged(path, partial(flip, place=place, bit=bit)):
            yield _judged(records[name], expected, f"bit {bit} of byte {place} of {name}/{path.name} flipped", path)


def _place(path: Path, rng: np.random.Generator) -> int:
    """A byte to change; in large files, where most are padding, one at its ends or one that is not zero."""
    length = path.stat().st_size
    if length <= 2 * HEAD:
        return int(rng.integers(length))
    if rng.random() < 0.5:
        return int(rng.integers(HEAD)) if rng.random() < 0.5 else length - 1 - int(rng.integers(HEAD))
    return int(rng.choice(np.flatnonzero(np.fromfile(path, np.uint8))))


def _judged(records: Path, expected: dict[Path, str], what: str, changed: Path) -> Trial:
    try:
        found = everything(records)
    except RecordsError as error:
        return Trial(REFUSED, "" if changed.name in str(error) else f"{what}: the error names another file ({error})")
    except Exception as error:
        return Trial("another error", f"{what}: {error!r}")
    if found != expected[records]:
        return Trial("silently wrong", f"{what}: other samples, labels, names or pixels are read")
    return Trial(UNCHANGED, "" if changed == records else f"{what}: it is not noticed")


def everything(path: Path) -> str:
    """A digest of all that records give. Raises RecordsError."""
    records = open_records(path)
    digest = hashlib.sha256(json.dumps([records.classes, records.index.tolist(), records.label.tolist()]).encode())
    digest.update(records.size.tobytes() + records.stored_size.tobytes())
    for position in range(len(records)):
        digest.update(decode_sample(records, position).tobytes() + records.source(position).encode())
    if isinstance(records, TarRecords):
        for shard in records.manifest.shards:
            records.verify_shard(shard)
    return digest.hexdigest()
