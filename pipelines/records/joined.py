"""Several records as one: the samples of the first, then those of the second, and so on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.folder import Labels
from equimod.pipelines.records.protocol import Records, RecordsError, StoredImage, nothing


def join_classes(
    names: Sequence[str], classes: Sequence[Sequence[str]], labels: Labels
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """The classes of all parts, sorted, and for each part the new number of each of its classes; none for `labels`
    "none".

    `names` are those of the parts, for errors. Raises RecordsError where some have labels and others have none.
    """
    if labels == "none":
        return [], [np.empty(0, dtype=np.int64) for _ in classes]
    labelled = [bool(of_part) for of_part in classes]
    if any(labelled) and not all(labelled):
        raise RecordsError(
            f"{names[labelled.index(True)]} has labels and {names[labelled.index(False)]} has none; give --labels none"
        )
    joined = sorted({name for of_part in classes for name in of_part})
    number = {name: label for label, name in enumerate(joined)}
    return joined, [np.array([number[name] for name in of_part], dtype=np.int64) for of_part in classes]


class JoinedRecords:
    """Records one after the other. A class is known by its name, whatever its number in a part.

    Indices go on from part to part, gaps included. Raises RecordsError where some parts have labels and others none.
    """

    def __init__(self, parts: Sequence[Records], names: Sequence[str], labels: Labels = "auto") -> None:
        """`names`: what the parts are called, in errors and in front of their samples."""
        self._parts, self._names = parts, names
        self._first = np.cumsum([0, *(len(part) for part in parts)])
        self.classes, numbers = join_classes(names, [part.classes for part in parts], labels)
        self.label = np.concatenate(
            [
                number[part.label] if len(number) else np.full(len(part), -1)
                for part, number in zip(parts, numbers, strict=True)
            ]
        )
        start, indices = 0, []
        for part in parts:
            indices.append(part.index + start)
            start = int(indices[-1][-1]) + 1
        self.index = np.concatenate(indices)
        self.size = np.concatenate([part.size for part in parts])
        self.stored_size = np.concatenate([part.stored_size for part in parts])
        self.length = np.concatenate([part.length for part in parts])
        self.checksum = np.concatenate([part.checksum for part in parts])
        self.changed = np.concatenate([part.changed for part in parts])
        self.remark = nothing(len(self.index))
        self.raw = any(part.raw for part in parts)
        self.manifest, self.form = None, " + ".join(part.form for part in parts)

    def __len__(self) -> int:
        return len(self.index)

    def _at(self, position: int) -> tuple[int, int]:
        """The part that holds a sample, and the position there."""
        part = int(np.searchsorted(self._first, position, side="right")) - 1
        return part, position - int(self._first[part])

    def read(self, position: int) -> StoredImage:
        """The image, as its part stores it. Raises RecordsError."""
        part, inside = self._at(position)
        return self._parts[part].read(inside)

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """See Records."""
        for part, inside in self._by_part(positions):
            part.will_read(inside)

    def wont_read(self, positions: NDArray[np.int64]) -> None:
        """See Records."""
        for part, inside in self._by_part(positions):
            part.wont_read(inside)

    def _by_part(self, positions: NDArray[np.int64]) -> Iterator[tuple[Records, NDArray[np.int64]]]:
        """The parts that hold samples, with their positions there."""
        of_part = np.searchsorted(self._first, positions, side="right") - 1
        for part in np.unique(of_part):
            yield self._parts[part], positions[of_part == part] - self._first[part]

    def source(self, position: int) -> str:
        """The sample's path in its source, behind the name of its part."""
        part, inside = self._at(position)
        return f"{self._names[part]}/{self._parts[part].source(inside)}"

    def name(self, position: int) -> str:
        """Where this sample comes from and lies, for error messages."""
        part, inside = self._at(position)
        return self._parts[part].name(inside)
