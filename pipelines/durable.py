"""Durable writes: what stands under its final name is complete and on the disk, whenever the process is killed.

Files and folders are written under a temporary name beside the final one, synced, renamed, and the parent folder is
synced. Checkpoints, records and the drawn data set are all written this way. A full disk surfaces as OSError. What a
killed process left under a temporary name goes when the same file or folder is written again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from equimod.pipelines.errors import EquimodError

TEMPORARY_PREFIX = ".partial-"
POINTER = "newest"
NUMBERED = re.compile(r"(?:step-)?\d+")
"""Names of the sub-folders that take turns. Others are not touched."""
SYNC_THREADS = 16  # concurrent fsyncs share one commit of the file system's journal


def _temporary(path: Path) -> Path:
    # Random, not the process id: two hosts may write to one shared folder.
    return path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(8)}")


def _temporary_prefix(path: Path) -> str:
    return f"{TEMPORARY_PREFIX}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"


@contextmanager
def _held_temporary(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """A temporary for `path` that `make` makes and opens, locked until the block ends, and its descriptor.

    What killed processes left of the same path is removed first: nobody holds it.
    """
    for left in path.parent.glob(f"{_temporary_prefix(path)}*"):
        if _is_abandoned(left):
            _remove(left)
    temporary = _temporary(path)
    descriptor = make(temporary)
    try:
        with suppress(OSError):  # a file system without locks, where nothing is removed either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary, descriptor
    except BaseException:
        _remove(temporary)
        raise
    finally:
        os.close(descriptor)


def _is_abandoned(temporary: Path) -> bool:
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is held, or nobody can say
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Have a file or the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in (*names, "")]  # noqa: PTH118
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(sync, paths))


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Binary handle whose content replaces `path` at once, when the block ends without an exception.

    Raises OSError where the folder is missing or the disk is full; `path` is then untouched.
    """
    with _held_temporary(path, lambda new: os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)) as (
        new,
        descriptor,
    ):
        with os.fdopen(os.dup(descriptor), "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(descriptor)
        new.replace(path)
    sync(path.parent)


@contextmanager
def durable_dir(path: Path) -> Iterator[Path]:
    """Temporary folder that becomes `path`, with all it then holds, when the block ends without an exception.

    Raises FileExistsError where `path` is there already, OSError where the disk is full.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")

    def make(new: Path) -> int:
        new.mkdir()
        return os.open(new, os.O_RDONLY)

    with _held_temporary(path, make) as (new, _):
        yield new
        _sync_tree(new)
        new.rename(path)
    sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporaries that killed processes left in `folder`; call it only where nobody else is writing."""
    for path in folder.glob(TEMPORARY_PREFIX + "*"):
        _remove(path)


class FolderBusyError(EquimodError):
    """Another process is writing to a folder that only one may write to."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` as long as this process lives. Raises FolderBusyError where another one does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderBusyError(f"{folder} is being written by another process; wait until it ends") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def pointed(folder: Path) -> list[str] | None:
    """The names in the pointer file of `folder`, newest first; None where there is none, or it is damaged."""
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    names = pointer.read_bytes().decode(errors="replace").split("\n")
    return names if all(map(NUMBERED.fullmatch, names)) else None


def complete(folder: Path) -> list[Path]:
    """The sub-folders of `folder` that are numbered, whether its pointer names them or not, by name, the last first."""
    return sorted((path for path in folder.glob("*") if path.is_dir() and NUMBERED.fullmatch(path.name)), reverse=True)


def kept(folder: Path) -> list[Path]:
    """The sub-folders that the pointer file of `folder` names, newest first, as far as they are there.

    Where there is none, as in a partial copy or with a damaged pointer, all that are complete.
    """
    named = [folder / name for name in pointed(folder) or () if (folder / name).is_dir()]
    return named or complete(folder)


def prune(folder: Path) -> None:
    """Remove temporaries and every numbered sub-folder that the pointer file does not name."""
    wanted = kept(folder)
    for path in complete(folder):
        if path not in wanted:
            path.rename(_temporary(path))  # a removal that is killed half-way leaves nothing under a final name
    remove_leftovers(folder)


def rotate(folder: Path, newest: str, keep: int = 2) -> None:
    """Name the complete sub-folder `newest` in the pointer file of `folder`, then remove all but the `keep` newest.

    Killed at any moment, it leaves a pointer whose names are all complete. Sub-folders are ordered by when they were
    passed here, not by name or date, so that a run resumed from an older one goes on correctly.
    """
    _point(folder, [newest, *(path.name for path in kept(folder) if path.name != newest)][:keep])


def go_back(folder: Path, newest: str) -> None:
    """Make the sub-folder `newest` of `folder` the newest one: those that came after it are removed."""
    names = [path.name for path in kept(folder)]
    _point(folder, names[names.index(newest) :] if newest in names else [newest])


def _point(folder: Path, names: list[str]) -> None:
    """Name sub-folders in the pointer file, and remove all others."""
    with durable_file(folder / POINTER) as handle:
        handle.write("\n".join(names).encode())
    prune(folder)


def remedy(error: OSError) -> str:
    """What to do about a failed system call on a file, as words for the end of a message."""
    return next((words for numbers, words in _REMEDIES if error.errno in numbers), "check the path and its permissions")


_REMEDIES = (
    ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    ((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    ((errno.ENOMEM,), "free memory"),
    ((errno.EIO, errno.ESTALE, errno.EREMOTEIO), "check the disk or its server"),
    ((errno.EROFS,), "choose a path that can be written"),
    ((errno.ENAMETOOLONG,), "choose a shorter name"),
)
