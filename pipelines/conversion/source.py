"""What records are made from: named, labelled images in a fixed order, and how a worker process reads one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from equimod.pipelines.conversion.check import CheckedImage, Encoding
from equimod.pipelines.records.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Item:
    index: int  # position in the source
    name: str
    label: int  # -1 without
    place: tuple[int, ...] = ()  # what the reader needs besides the name


class Reader(Protocol):
    """Reads the items of a source. Small and picklable: it goes to every worker process."""

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        """The image as it is to be stored, decoded once as a check. Raises DamagedImageError."""
        ...

    def mark(self, item: Item) -> tuple[int, ...]:
        """Numbers that change where the image is replaced in the source, such as its length and its date."""
        ...


@dataclass(frozen=True)
class Source:
    path: Path
    classes: list[str]  # position = label; empty without labels
    items: Sequence[Item]  # by ascending index
    reader: Reader
    origin: Manifest | None = None  # where the source is records: what they say about theirs
    also: tuple[Path, ...] = ()  # other paths, where it is several

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return self.path, *self.also

    @property
    def name(self) -> str:
        """What records say that they were made from."""
        return " + ".join(path.resolve().name for path in self.paths)
