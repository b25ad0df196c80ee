"""What records are made from: named, labelled images in a fixed order, and how a worker process reads one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from equimod.pipelines.codec import encode_png
from equimod.pipelines.conversion.check import CheckedImage, DamagedImageError, check_image
from equimod.pipelines.decode import decode
from equimod.pipelines.records import open_records
from equimod.pipelines.records.beton import SUFFIX, BetonRecords
from equimod.pipelines.records.folder import scan_tree
from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.protocol import Records, RecordsError
from equimod.pipelines.records.tar import MANIFEST, TarRecords


@dataclass(frozen=True, slots=True)
class Item:
    index: int  # position in the source
    name: str
    label: int
    place: tuple[int, int] = (0, 0)  # what the reader needs besides the name


class Reader(Protocol):
    """Reads the items of a source. Small and picklable: it goes to every worker process."""

    def load(self, item: Item) -> CheckedImage:
        """The image, decoded once as a check. Raises DamagedImageError."""
        ...

    def length(self, item: Item) -> int:
        """Bytes of the image in the source, to notice that it was replaced; -1 where it cannot be read."""
        ...


@dataclass(frozen=True)
class Source:
    path: Path
    classes: list[str]  # position = label
    items: Sequence[Item]  # by ascending index
    reader: Reader
    origin: Manifest | None = None  # where the source is records: what they say about theirs


@dataclass(frozen=True)
class TreeReader:
    """Files of an ImageFolder tree."""

    root: Path

    def load(self, item: Item) -> CheckedImage:
        try:
            content = (self.root / item.name).read_bytes()
        except OSError as error:
            raise DamagedImageError(error.strerror or str(error)) from error
        return check_image(content)

    def length(self, item: Item) -> int:
        try:
            return (self.root / item.name).stat().st_size
        except OSError:
            return -1


@dataclass(frozen=True)
class RecordsReader:
    """Images of records, byte for byte; pixels become PNG files."""

    path: Path

    def load(self, item: Item) -> CheckedImage:
        records, position = _opened(self.path), item.place[0]
        try:
            image = records.read(position)
            decode(image)
        except (RecordsError, ValueError, OSError) as error:
            raise DamagedImageError(str(error).partition("\n")[0]) from error
        content = encode_png(image) if isinstance(image, np.ndarray) else bytes(image)
        return CheckedImage(content, _pair(records.size[position]), _pair(records.stored_size[position]), None)

    def length(self, item: Item) -> int:
        return int(_opened(self.path).length[item.place[0]])


_open: dict[Path, Records] = {}


def _opened(path: Path) -> Records:
    """The records at `path`, opened once a process."""
    if path not in _open:
        _open[path] = open_records(path)
    return _open[path]


def _pair(size: np.ndarray) -> tuple[int, int]:
    return int(size[0]), int(size[1])


def tree_source(root: Path) -> Source:
    """An ImageFolder tree in torchvision's order. Raises RecordsError (see `scan_tree`)."""
    tree = scan_tree(root)
    items = [Item(i, name, label) for i, (name, label) in enumerate(zip(tree.names, tree.labels, strict=True))]
    return Source(root, tree.classes, items, TreeReader(root))


def records_source(path: Path) -> Source:
    """Records in any format. Raises RecordsError where they cannot be opened."""
    records = open_records(path)
    manifest = None
    if isinstance(records, TarRecords):
        manifest = records.manifest
    elif isinstance(records, BetonRecords) and records.trailer:
        manifest = records.trailer.manifest
    columns = zip(records.index.tolist(), records.label.tolist(), strict=True)
    items = [Item(i, records.source(at), label, (at, 0)) for at, (i, label) in enumerate(columns)]
    return Source(path, records.classes, items, RecordsReader(path), manifest)


def open_source(path: Path, devkit: Path | None = None) -> Source:
    """The source at `path`: records, an archive of ImageNet, or an ImageFolder tree.

    `devkit` is the archive with the labels of ImageNet's validation images; by default it is looked for beside `path`.
    Raises RecordsError where it is none of these or cannot be read.
    """
    if path.suffix == SUFFIX or (path / MANIFEST).is_file():
        return records_source(path)
    if path.is_file():
        from equimod.pipelines.conversion.imagenet import imagenet_source

        return imagenet_source(path, devkit)
    return tree_source(path)
