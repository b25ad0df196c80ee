"""What is known of the headers of many image files, kept between processes: to open each takes far longer than to ask
the system whether it changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.durable import durable_file
from equimod.pipelines.progress import track

FEWEST = 10_000
"""Files below which nothing is kept: they are read in a second or so."""
THREADS = 16  # they wait for the disk, not for a core
_FORM = b"equimod headers 1\n"
_DIGEST = 32  # bytes
_MARKS = 4  # numbers of a file that are others once it changed

Headers = NDArray[np.int64]
"""Numbers of files, a row a file."""


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again: $EQUIMOD_CACHE, or ~/.cache/equimod."""
    return Path(os.environ.get("EQUIMOD_CACHE", "~/.cache/equimod")).expanduser()


def read_headers(root: Path, names: Sequence[str], read: Callable[[Path], Sequence[int]], count: int) -> Headers:
    """What `read` finds of each file, `count` numbers: (N, count), from the cache where a file is as it was.

    Whether it is, its length, its dates and its place on the disk tell; no program can set all of them. Raises what
    `read` raises.
    """
    path = cache_folder() / "headers" / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    paths = [root / name for name in names]
    with ThreadPoolExecutor(THREADS) as pool:
        if len(names) < FEWEST:
            return _read(pool, paths, read, count)
        shown = track(pool.map(_marks, paths, chunksize=256), len(paths), "looking for changed files", "files")
        marks = np.array(list(shown), dtype=np.int64).reshape(-1, _MARKS)
        known = _known(path, names, _MARKS + count)
        new = np.flatnonzero((known[:, :_MARKS] != marks).any(axis=1) | (marks == 0).all(axis=1))
        found = known[:, _MARKS:]
        found[new] = _read(pool, [paths[position] for position in new], read, count)
    if len(new):
        with suppress(OSError):  # a full disk, or a home that nobody may write to
            _keep(path, names, np.concatenate([marks, found], axis=1))
    return found


def _read(
    pool: ThreadPoolExecutor, paths: Sequence[Path], read: Callable[[Path], Sequence[int]], count: int
) -> Headers:
    found = track(pool.map(read, paths), len(paths), "reading headers", "images")
    return np.array(list(found), dtype=np.int64).reshape(-1, count)


def _marks(path: Path) -> tuple[int, ...]:
    """Zeros where the file cannot be asked for; to read it says why."""
    try:
        found = path.stat()
    except OSError:
        return (0,) * _MARKS
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _known(path: Path, names: Sequence[str], width: int) -> Headers:
    """What is kept of these files; zeros for others, and for all where the file is damaged."""
    nothing = np.zeros((len(names), width), dtype=np.int64)
    try:
        content = path.read_bytes()
    except OSError:
        return nothing
    form, digest, rest = content[: len(_FORM)], content[len(_FORM) :][:_DIGEST], content[len(_FORM) + _DIGEST :]
    if form != _FORM or digest != hashlib.sha256(rest).digest():
        return nothing
    files = int.from_bytes(rest[:8], "little")
    kept = np.frombuffer(rest, "<i8", files * width, offset=8).reshape(files, width)
    before = rest[8 + kept.nbytes :].split(b"\0") if files else []
    if before == [os.fsencode(name) for name in names]:
        return kept.copy()
    place = {name: number for number, name in enumerate(before)}
    places = np.array([place.get(os.fsencode(name), -1) for name in names], dtype=np.int64)
    nothing[places >= 0] = kept[places[places >= 0]]
    return nothing


def _keep(path: Path, names: Sequence[str], rows: Headers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes() + b"\0".join(map(os.fsencode, names))
    with durable_file(path) as file:
        file.write(_FORM + hashlib.sha256(rest).digest() + rest)
