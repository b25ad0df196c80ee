"""The file that becomes a .beton, as far as it is written: a conversion that was interrupted goes on in it."""

from __future__ import annotations

import hashlib
import os
import zlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.durable import sync

CONTENT, ROWS = "beton.content", "beton.rows"
ROW = np.dtype([("mode", "u1"), ("pointer", "<u8"), ("size", "<u8"), ("crc32", "<u4")])
KEPT_EVERY = 2**28
"""Bytes that a crash may cost."""


def parts_folder(output: Path) -> Path:
    """Where what becomes a .beton file lies meanwhile: shards, and the file as far as it is written."""
    return output.parent / f".{output.name}.parts"


class UnfinishedBeton:
    """The images of an unfinished file, and beside it a row of each that is on the disk: mode, place, checksum."""

    def __init__(self, folder: Path, key: str, first: int) -> None:
        """`key`: what another one has that is not to go on here; `first`: where images begin."""
        self._content, self._table = folder / CONTENT, folder / ROWS
        self._key, self._first = hashlib.sha256(f"{key} {first}".encode()).digest(), first
        self._waiting: list[tuple[int, int, int, int]] = []  # rows of images that may not be on the disk yet

    def __enter__(self) -> UnfinishedBeton:
        self._content.parent.mkdir(exist_ok=True)
        self._content.touch()
        rows = self._found()
        self.count, self.end = len(rows), _end(rows) if len(rows) else self._first
        self._kept = self.end
        self._table.write_bytes(self._key + rows.tobytes())
        self.file = self._content.open("r+b")
        self.file.truncate(self.end if self.count else 0)
        return self

    def _found(self) -> NDArray[np.void]:
        """The rows of what an interrupted run of the same has left."""
        written = self._table.read_bytes() if self._table.exists() else b""
        if not written.startswith(self._key):
            return np.empty(0, ROW)
        count = (len(written) - len(self._key)) // ROW.itemsize
        rows = np.frombuffer(written, ROW, count, offset=len(self._key))
        return rows if count and _end(rows) <= self._content.stat().st_size else rows[:0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.file:
            if self._table.exists() and not isinstance(error, OSError):
                self._keep()

    def write(self, mode: int, content: bytes | memoryview) -> None:
        """Append an image at `end`."""
        self.file.seek(self.end)
        self.file.write(content)
        self._waiting.append((mode, self.end, len(content), zlib.crc32(content)))
        self.end += len(content)
        if self.end - self._kept >= KEPT_EVERY:
            self._keep()

    def _keep(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        with self._table.open("ab") as table:
            table.write(np.array(self._waiting, ROW).tobytes())
        self.count, self._kept, self._waiting = self.count + len(self._waiting), self.end, []

    def rows(self) -> NDArray[np.void]:
        """Mode, place, length and checksum of every image so far."""
        self._keep()
        return np.fromfile(self._table, ROW, offset=len(self._key))

    def finish(self, path: Path) -> None:
        """Make it the file at `path`."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._content.replace(path)
        sync(path.parent)
        self._table.unlink()
        with suppress(OSError):  # it may hold shards
            self._content.parent.rmdir()


def _end(rows: NDArray[np.void]) -> int:
    """Where the last of these images ends."""
    return int(rows["pointer"][-1]) + int(rows["size"][-1])
