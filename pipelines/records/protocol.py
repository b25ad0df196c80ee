"""The one interface between what lies on disk and everything that reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.errors import EquimodError

if TYPE_CHECKING:  # it raises errors of this file
    from equimod.pipelines.records.manifest import Manifest

StoredImage = bytes | memoryview | NDArray[np.uint8]
"""An image as it is stored: an encoded file, or its RGB pixels (H,W,3)."""


class RecordsError(EquimodError):
    """Records that cannot be read as asked: the message names the file, the fault and the remedy, in one line."""


class Contents(Protocol):
    """The part of records that a model is built from."""

    classes: list[str]  # class names, position = label; empty where images have no labels
    size: NDArray[np.int32]  # (N,2) width, height of the ORIGINAL image in pixels


class Records(Contents, Protocol):
    """Images with their labels; random access, safe to call from several threads at once."""

    label: NDArray[np.int64]  # (N,), -1 where images have no labels
    index: NDArray[np.int64]  # (N,) position of the sample in the source, ascending; gaps where one was left out
    stored_size: NDArray[np.int32]  # (N,2) width, height of the image that `read` gives: smaller after --max-side
    length: NDArray[np.int64]  # (N,) bytes of what `read` gives
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

    def source(self, position: int) -> str:
        """The sample's path in the source that was converted."""
        ...

    def name(self, position: int) -> str:
        """Where this sample comes from and lies, for error messages."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal digest of the content, equal for equal samples in the same order."""
        ...


def content_digest(classes: Sequence[str], *columns: NDArray[Any]) -> str:
    """Hexadecimal digest of class names and of a table's columns: index, label, size, length in bytes.

    The length stands for the content of an image, so the same images have the same digest in every format.
    """
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for column in columns:
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def damaged(name: str) -> RecordsError:
    """The error about a sample whose bytes do not have their checksum."""
    return RecordsError(
        f"{name} is damaged: its bytes do not have their checksum; copy the file again or convert again"
    )
