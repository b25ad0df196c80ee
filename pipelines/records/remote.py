"""Files at a URL, read in blocks that a folder on this machine keeps, for all processes and for later runs.

    ~/.cache/equimod/remote/KEY/NAME.000017     block 17 of the file NAME of the data KEY, there when it is complete

A block that one process fetches, others wait for. Where the folder has reached its limit, what was asked for longest
ago goes. Blocks have no checksums of their own: where an image does not have its own, its blocks are fetched again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from equimod.pipelines.durable import TEMPORARY_PREFIX
from equimod.pipelines.records.header_cache import cache_folder
from equimod.pipelines.records.protocol import RecordsError

BLOCK = 2**20
"""Bytes of a block. Smaller ones would leave the network waiting for answers."""
THREADS = 32  # requests at a time: they wait for the network, not for a core
TRIES = 5
WAIT_SECONDS = 1.0  # after the first failure, and twice as long after each further one
SILENT_SECONDS = 30.0  # after which a server that sends nothing is asked again
_LOCKS = 256
_LOOK = 256  # blocks between two looks at how much is kept
_TO_REMOVE = re.compile(rf"[^.].*\.\d{{6,}}|{re.escape(TEMPORARY_PREFIX)}.*")  # blocks, and parts of some
T = TypeVar("T")
_URL = re.compile(r"([a-z][a-z0-9+]+):/+(.*)", re.DOTALL)


def url_of(path: Path) -> str | None:
    """The URL that a path stands for, whose slashes a path has lost: s3://bucket/records; None for a path."""
    found = _URL.fullmatch(str(path))
    return f"{found[1]}://{found[2]}" if found else None


@dataclass(frozen=True)
class Remote:
    """Files at a URL, and the folder that keeps blocks of them."""

    url: str
    folder: Path  # KEY

    @classmethod
    def of(cls, url: str, version: str) -> Remote:
        """What is at `url`; `version`: what is other where the data is."""
        key = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32]
        return cls(url, cache_folder() / "remote" / key)

    def file(self, name: str, length: int) -> RemoteFile:
        """One of the files, below the URL, or the one at the URL where `name` is empty."""
        return RemoteFile(f"{self.url}/{name}".rstrip("/"), self.folder / (name or "file"), length)


class RemoteFile:
    """As `FileReader`, of a file at a URL. Raises RecordsError where a block cannot be fetched."""

    def __init__(self, url: str, stem: Path, length: int) -> None:
        self._url, self._stem, self.length = url, stem, length

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. Raises RecordsError where they cannot be fetched, or are not there."""
        if offset + length > self.length:
            raise RecordsError(f"{self._url} is cut short, before byte {offset + length:,}; copy it or convert again")
        parts = []
        for number in self._blocks(offset, length):
            begin, end = max(offset - number * BLOCK, 0), min(offset + length - number * BLOCK, BLOCK)
            parts.append(self._part(number, begin, end))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def will_read(self, offset: int, length: int) -> None:
        """Begin to fetch these bytes, where they are not here."""
        for number in self._blocks(offset, length):
            try:
                os.utime(self._path(number))
            except OSError:
                _queue().put(partial(self._fetched, number))

    def wont_read(self, offset: int, length: int) -> None:
        """Nothing: what was asked for longest ago goes where another block needs its place."""

    def forget(self, offset: int, length: int) -> bool:
        """Fetch these bytes anew when they are read next: they are not what they should be. True: they can be."""
        for number in self._blocks(offset, length):
            self._path(number).unlink(missing_ok=True)
        return True

    def _blocks(self, offset: int, length: int) -> range:
        return range(offset // BLOCK, -(-(offset + length) // BLOCK))

    def _path(self, number: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{number:06}")

    def _part(self, number: int, begin: int, end: int) -> bytes:
        try:
            with self._path(number).open("rb") as file:
                content = os.pread(file.fileno(), end - begin, begin)
        except OSError:
            content = b""
        return content if len(content) == end - begin else self._fetched(number)[begin:end]

    def _fetched(self, number: int) -> bytes:
        """A block, from the folder where another thread or process has brought it there meanwhile."""
        start = number * BLOCK
        length = min(BLOCK, self.length - start)
        path = self._path(number)
        with _alone(path):
            with suppress(OSError):
                content = path.read_bytes()
                if len(content) == length:
                    return content
            content = fetch(self._url, start, start + length)
            keep(path, content)
            return content


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Have one thread of all processes fetch a block at a time, where the file system has locks."""
    number = int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % _LOCKS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".lock-{number}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fetch(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """A file at a URL, or its bytes from `start` to `stop`; asked for again where the network or the server fails.

    Raises RecordsError.
    """

    def get(system: Any, path: str) -> bytes:
        content: bytes = system.cat_file(path, start=start, end=stop)
        if start is not None and stop is not None and len(content) != stop - start:
            raise OSError(f"{len(content):,} bytes came in place of {stop - start:,}")
        return content

    return _tried(url, get)


def described(url: str) -> tuple[int, str]:
    """Length of the file at a URL, and what is other where it was replaced. Raises RecordsError."""

    def get(system: Any, path: str) -> tuple[int, str]:
        info = system.info(path)
        if info.get("size") is None:
            raise OSError("the server does not tell its length")
        marks = [info.get(name) for name in ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated")]
        return int(info["size"]), str(marks)

    return _tried(url, get)


def _tried(url: str, get: Callable[[Any, str], T]) -> T:
    system, path = _system(url)
    for attempt in range(TRIES):
        try:
            return get(system, path)
        except (FileNotFoundError, PermissionError) as error:
            what = "is not there" if isinstance(error, FileNotFoundError) else "may not be read"
            raise RecordsError(f"{url} {what}; check the URL and your credentials") from error
        except Exception as error:  # every kind of server has kinds of its own
            if attempt == TRIES - 1:
                reason = str(error) or type(error).__name__
                raise RecordsError(
                    f"{url} cannot be fetched: {reason}; check the network and run the same command again"
                ) from error
            time.sleep(WAIT_SECONDS * 2**attempt)
    raise AssertionError


@cache
def _system(url: str) -> tuple[Any, str]:
    """What reaches a URL, and how that calls the file. Raises RecordsError where nothing does."""
    try:
        import fsspec
    except ImportError as error:
        raise RecordsError(f"{url} needs fsspec; pip install 'equimod[remote]'") from error
    options: dict[str, Any] = {}
    try:
        if url.startswith("http"):
            import aiohttp

            waits = aiohttp.ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
            options["client_kwargs"] = {"timeout": waits}
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # its text names the package to install, or the kind of URL
        raise RecordsError(f"{url} cannot be reached: {error}; install that, or give another URL") from error
    return system, path


def keep(path: Path, content: bytes) -> None:
    """Write a file of the folder. Raises RecordsError where there is no room for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _room.make(path)
        try:
            _write(path, content)
        except OSError as error:
            if error.errno != errno.ENOSPC or not _room.make(path, half=True):
                raise
            _write(path, content)
    except OSError as error:
        raise RecordsError(
            f"{path.parent} cannot keep what is fetched: {error.strerror}; free space there, or have it elsewhere by "
            "EQUIMOD_CACHE=FOLDER"
        ) from error


def _write(path: Path, content: bytes) -> None:
    # Not through to the disk: what a crash makes of it, its checksum tells.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=TEMPORARY_PREFIX, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class _Room:
    """The limit of what is kept: EQUIMOD_CACHE_GIB, or nine tenths of the room there is."""

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0

    def make(self, path: Path, half: bool = False) -> bool:
        """Remove what was asked for longest ago where the limit is reached, or `half` of all. Whether any was."""
        with self._lock:
            self._blocks += 1
            if self._blocks % _LOOK != 1 and not half:
                return False
            found = [(entry.stat(), entry.path) for entry in _blocks_below(cache_folder() / "remote")]
            used = sum(stat.st_size for stat, _ in found)
            most = used / 2 if half else self._limit(path, used) - _LOOK * BLOCK
            removed = False
            for stat, name in sorted(found, key=lambda one: one[0].st_mtime):
                if used <= most:
                    break
                with suppress(FileNotFoundError):  # another process was quicker
                    Path(name).unlink()
                used, removed = used - stat.st_size, True
            return removed

    def _limit(self, path: Path, used: int) -> float:
        if (asked := os.environ.get("EQUIMOD_CACHE_GIB")) is None:
            return used + 0.9 * shutil.disk_usage(path.parent).free
        try:
            return float(asked) * 2**30
        except ValueError:
            raise RecordsError(f"EQUIMOD_CACHE_GIB={asked!r} is no number; give the GiB to keep at most") from None


def _blocks_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as keys:
        for key in keys:
            with os.scandir(key) as entries:
                yield from (entry for entry in entries if _TO_REMOVE.fullmatch(entry.name))


_room = _Room()


@cache
def _queue() -> SimpleQueue[Callable[[], object]]:
    """What is fetched ahead, by threads that end with the process: it need not wait for what nobody will use."""
    queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
    for _ in range(THREADS):
        threading.Thread(target=_fetch_ahead, args=(queue,), name="equimod-fetch", daemon=True).start()
    return queue


def _fetch_ahead(queue: SimpleQueue[Callable[[], object]]) -> None:
    while True:
        with suppress(RecordsError):  # which `read` raises, where it does not fare better
            queue.get()()
