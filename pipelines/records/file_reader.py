"""Parts of a file that stays open, read anywhere and by any thread.

Not mapped into memory: a file that is cut or replaced under a map ends the process by a signal. Parts can be requested
in advance, since a thread that reads what is not in memory yet waits for the disk.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.durable import remedy
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.stored import regular_descriptor

_GAP = 2**16
"""Bytes that lie between two parts and are read with them: less than a request of its own costs."""


def merged(file: NDArray[np.int64], offset: NDArray[np.int64], length: NDArray[np.int64]) -> Iterator[list[int]]:
    """[file, offset, length] of the requests that cover these parts of numbered files, neighbours in one."""
    if not len(file):
        return
    order = np.lexsort((offset, file))
    file, offset, end = file[order], offset[order], (offset + length)[order]
    far = end[:-1] + _GAP < offset[1:]
    first = np.flatnonzero(np.concatenate([[True], far | (file[1:] != file[:-1])]))
    last = np.append(first[1:], len(order)) - 1
    yield from np.stack([file[first], offset[first], end[last] - offset[first]], axis=1).tolist()


class RandomAccess(Protocol):
    """A file whose parts are read anywhere and by any thread."""

    length: int  # bytes

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. Raises RecordsError."""
        ...

    def will_read(self, offset: int, length: int) -> None:
        """Begin to load these bytes, without waiting."""
        ...

    def wont_read(self, offset: int, length: int) -> None:
        """Forget these bytes."""
        ...

    def forget(self, offset: int, length: int) -> bool:
        """These bytes are not what they should be. Whether reading them again may give others."""
        ...


def read_checked(file: RandomAccess, offset: int, length: int, crc32: int) -> bytes | None:
    """Bytes that have this checksum, None where they do not have it. Raises RecordsError where they cannot be read."""
    content = file.read(offset, length)
    if zlib.crc32(content) == crc32:
        return content
    if not file.forget(offset, length):
        return None
    content = file.read(offset, length)
    return content if zlib.crc32(content) == crc32 else None


class FileReader:
    """Raises RecordsError where the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = regular_descriptor(path)
            self.length = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise RecordsError(f"{path} cannot be read: {error.strerror}; {remedy(error)}") from error

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. Raises RecordsError where they are not there or cannot be read."""
        content = b""
        try:
            while len(content) < length and offset + length <= self.length:  # the system reads 2 GiB at a time
                part = os.pread(self._descriptor, length - len(content), offset + len(content))
                if not part:
                    break
                content = content + part if content else part
        except OSError as error:
            raise RecordsError(f"{self._path} cannot be read: {error.strerror}; {remedy(error)}") from error
        if len(content) < length:
            raise RecordsError(f"{self._path} is cut short, before byte {offset + length:,}; copy it or convert again")
        return content

    def will_read(self, offset: int, length: int) -> None:
        """Have the system begin to load these bytes, without waiting, where it can."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def forget(self, offset: int, length: int) -> bool:
        """They stay as they are."""
        return False

    def wont_read(self, offset: int, length: int) -> None:
        """Have the system forget these bytes, where it can."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)
