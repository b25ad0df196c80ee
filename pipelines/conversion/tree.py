"""Folders and lists of images as a source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from equimod.pipelines.conversion.check import CheckedImage, DamagedImageError, Encoding, check_image
from equimod.pipelines.conversion.source import Item, Source
from equimod.pipelines.records.folder import Labels, scan
from equimod.pipelines.stored import open_regular


@dataclass(frozen=True)
class TreeReader:
    """Files of a folder or a list."""

    root: Path

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        try:
            with open_regular(self.root / item.name) as file:
                content = file.read()
        except OSError as error:
            raise DamagedImageError(error.strerror or str(error)) from error
        return check_image(content, encoding)

    def mark(self, item: Item) -> tuple[int, ...]:
        try:
            found = (self.root / item.name).stat()
        except OSError:
            return ()
        return found.st_size, found.st_mtime_ns


def tree_source(path: Path, labels: Labels = "auto") -> Source:
    """A folder or a list of images. Raises RecordsError (see `scan`)."""
    tree = scan(path, labels)
    items = [Item(i, name, label) for i, (name, label) in enumerate(zip(tree.names, tree.labels, strict=True))]
    return Source(path, tree.classes, items, TreeReader(tree.root))
