"""What is known of many image files, and of what large archives hold, kept between processes: to open each takes far
longer than to ask the system whether it changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
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
_FORM = b"equimod headers 2\n"
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
    path = _place("headers", root)
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


Listed = tuple[str, tuple[int, int, int]]
"""The name of a file in an archive, and numbers about it."""


def read_listing(archive: Path, list_files: Callable[[], Iterator[Listed]]) -> Iterator[Listed]:
    """What an archive holds, as `list_files` lists it, from the cache where the archive is as it was.

    Raises what `list_files` raises.
    """
    path, marks = _place("listings", archive), _marks(archive)
    if (kept := _kept(path)) and kept[1][:_MARKS].tolist() == list(marks) and any(marks):
        names, numbers = kept[0][1:], kept[1].reshape(-1, _MARKS)[1:, :3]
        yield from zip(map(os.fsdecode, names), map(tuple, numbers.tolist()), strict=True)
        return
    found = []
    for listed in list_files():
        found.append(listed)
        yield listed
    unpacked = archive.is_relative_to("/proc")  # which is gone with this process
    if len(found) >= FEWEST and not unpacked and not any("\0" in name for name, _ in found):
        rows = np.array([marks, *((*numbers, 0) for _, numbers in found)], dtype=np.int64)
        with suppress(OSError, UnicodeEncodeError):
            _keep(path, ["", *(name for name, _ in found)], rows)


def _place(kind: str, path: Path) -> Path:
    return cache_folder() / kind / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


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
    if (found := _kept(path)) is None:
        return nothing
    before, kept = found[0], found[1].reshape(-1, width)
    if before == [os.fsencode(name) for name in names]:
        return kept.copy()
    place = {name: number for number, name in enumerate(before)}
    places = np.array([place.get(os.fsencode(name), -1) for name in names], dtype=np.int64)
    nothing[places >= 0] = kept[places[places >= 0]]
    return nothing


def _kept(path: Path) -> tuple[list[bytes], NDArray[np.int64]] | None:
    """Names, and the numbers of all of them one after the other; None where nothing is kept or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    form, digest, rest = content[: len(_FORM)], content[len(_FORM) :][:_DIGEST], content[len(_FORM) + _DIGEST :]
    if form != _FORM or digest != hashlib.sha256(rest).digest():
        return None
    numbers = np.frombuffer(rest, "<i8", int.from_bytes(rest[:8], "little"), offset=8)
    return rest[8 + numbers.nbytes :].split(b"\0"), numbers


def _keep(path: Path, names: Sequence[str], rows: Headers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = rows.size.to_bytes(8, "little") + rows.astype("<i8").tobytes() + b"\0".join(map(os.fsencode, names))
    with durable_file(path) as file:
        file.write(_FORM + hashlib.sha256(rest).digest() + rest)
