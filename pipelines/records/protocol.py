"""The one interface between what lies on disk and everything that reads it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.errors import EquimodError

if TYPE_CHECKING:  # it raises errors of this file
    from equimod.pipelines.records.manifest import Manifest

EDGE = 4096  # bytes
_ROWS = 2**16  # that are looked at at a time: a copy of a whole column takes memory in every process
Integers = NDArray[Any]
"""Numbers of any type of integer, perhaps as a view of a table as it lies on disk."""
StoredImage = bytes | NDArray[np.uint8]
"""An image as it is stored: an encoded file, or its RGB pixels (H,W,3)."""


class RecordsError(EquimodError):
    """Records that cannot be read as asked: the message names the file, the fault and the remedy, in one line."""


class Contents(Protocol):
    """The part of records that a model is built from."""

    classes: list[str]  # class names, position = label; empty where images have no labels
    size: Integers  # (N,2) width, height of the ORIGINAL image in pixels


class Records(Contents, Protocol):
    """Images with their labels; random access, safe to call from several threads at once."""

    label: Integers  # (N,), -1 where images have no labels
    index: Integers  # (N,) position of the sample in the source, ascending; gaps where one was left out
    stored_size: Integers  # (N,2) width, height of the image that `read` gives: smaller after --max-side
    length: Integers  # (N,) bytes of what `read` gives
    checksum: Integers  # (N,) CRC-32 of what `read` gives; of files in place see `edges_checksum`
    changed: Integers  # (N,) when a file in place was changed last, nanoseconds; 0 in records with checksums
    remark: Integers  # (N,) number of what the manifest remarks on it, from 1 on; 0: nothing
    raw: bool  # whether `read` gives pixels, for some images at least
    form: str  # the format, and what is particular to it, for people

    @property
    def manifest(self) -> Manifest | None:
        """What the records say about themselves; None for trees and files of other programs."""
        ...

    def __len__(self) -> int: ...

    def read(self, position: int) -> StoredImage:
        """The image at `position` (0 <= position < len), as stored.

        Raises RecordsError where the bytes are not there or do not have their checksum.
        """
        ...

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system load these samples ahead of `read`, where it can; returns at once, and never fails."""
        ...

    def wont_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system forget these samples, where it can; never fails."""
        ...

    def source(self, position: int) -> str:
        """The sample's path in the source that was converted. Raises RecordsError where the names are damaged."""
        ...

    def name(self, position: int) -> str:
        """Where this sample comes from and lies, for error messages."""
        ...


@dataclass(frozen=True)
class Fingerprint:
    """Hexadecimal digests of what records hold, equal for equal samples in the same order."""

    table: str  # classes, indices, labels and original sizes: the same in every format
    content: str  # lengths and checksums: the same in all records that store the same bytes
    dates: str  # of files in place

    def __str__(self) -> str:
        return f"{self.table[:16]} {self.content[:16]}"


def fingerprint(records: Records) -> Fingerprint:
    """What `records` are known by."""
    names = json.dumps(records.classes).encode()
    return Fingerprint(
        table=_digest(names, records.index, records.label, records.size),
        content=_digest(b"", records.length, records.checksum),
        dates=_digest(b"", records.changed),
    )


def _digest(names: bytes, *columns: Integers) -> str:
    digest = hashlib.sha256(names)
    for column in columns:
        for rows in parts(len(column)):
            digest.update(np.ascontiguousarray(column[rows], dtype="<i8").tobytes())
    return digest.hexdigest()


def parts(count: int) -> Iterator[slice]:
    """So many rows, a few at a time."""
    for start in range(0, count, _ROWS):
        yield slice(start, start + _ROWS)


MOST_CLASSES = 2**20
"""Classes that records of other programs may have, whose labels are numbers without names."""


def numbered_classes(path: Path, highest: int) -> list[str]:
    """Names of classes that are known by their numbers alone, from 0 to the `highest` label.

    Raises RecordsError for one that is no class's number, such as an identifier.
    """
    if highest >= MOST_CLASSES:
        raise RecordsError(f"{path} has a label of {highest:,}; number classes 0, 1, ... below {MOST_CLASSES:,}")
    return [str(number) for number in range(highest + 1)]


def nothing(count: int) -> Integers:
    """A column of zeros, which takes no memory."""
    return np.broadcast_to(np.int64(0), count)


def pairs(table: NDArray[np.void], first: str, second: str) -> Integers:
    """Two fields of a table that have one type, as a view (N,2)."""
    column: Integers = table[first]
    offset = {name: place for name, (_, place, *_) in (table.dtype.fields or {}).items()}
    strides = (*column.strides, offset[second] - offset[first])
    view: Integers = np.lib.stride_tricks.as_strided(column, (len(table), 2), strides, writeable=False)
    return view


def is_possible(records: Records) -> bool:
    """Whether a table's columns can be true: indices that ascend, sizes of a pixel or more, labels of the classes."""
    known = range(len(records.classes)) if records.classes else range(-1, 0)
    return (
        len(records) > 0
        and bool(records.index[0] >= 0 and (records.index[1:] > records.index[:-1]).all())
        and bool((records.size >= 1).all() and (records.stored_size >= 1).all())
        and records.label.min() in known
        and records.label.max() in known
        and records.remark.max() <= (len(records.manifest.remarks) if records.manifest else 0)
    )


def edges_checksum(read: Callable[[int, int], bytes], length: int) -> int:
    """CRC-32 of the first and the last 4 KiB of a file of `length` bytes, which `read(length, offset)` reads.

    It stands for the content where reading all of it would take too long.
    """
    return zlib.crc32(read(EDGE, max(0, length - EDGE)), zlib.crc32(read(EDGE, 0)))


def source_or_index(records: Records, position: int) -> str:
    """The sample's path in the source, or its index: an error about a sample must not end in one about its name."""
    try:
        return records.source(position)
    except RecordsError:
        return f"sample {records.index[position]}"


def damaged(name: str) -> RecordsError:
    """The error about a sample whose bytes do not have their checksum."""
    return RecordsError(
        f"{name} is damaged: its bytes do not have their checksum; copy the file again or convert again"
    )
