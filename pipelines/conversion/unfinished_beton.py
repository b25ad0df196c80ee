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
        self.count, self.end = self._found()
        self._kept = self.end
        rows = self._table.read_bytes()[len(self._key) :][: self.count * ROW.itemsize] if self.count else b""
        self._table.write_bytes(self._key + rows)
        self.file = self._content.open("r+b")
        self.file.truncate(self.end if self.count else 0)
        return self

    def _found(self) -> tuple[int, int]:
        """How many images an interrupted run of the same has left, and where they end."""
        written = self._table.read_bytes() if self._table.exists() else b""
        count = (len(written) - len(self._key)) // ROW.itemsize
        if written[: len(self._key)] != self._key or count < 1:
            return 0, self._first
        last = np.frombuffer(written, ROW, count, offset=len(self._key))[-1]
        end = int(last["pointer"]) + int(last["size"])
        return (count, end) if end <= self._content.stat().st_size else (0, self._first)

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
