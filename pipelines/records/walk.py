"""The images below a folder. Every real folder is read once, however many links lead to it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from equimod.pipelines.progress import Progress
from equimod.pipelines.records.image_names import hidden_kind, is_image, kind
from equimod.pipelines.records.protocol import RecordsError

_REPEATED = "link to a folder that is read already"


class Walk:
    """What lies below `root`.

    A link is followed after all folders that are none, so that what it leads to keeps its own place, and never back to
    `root` or above. Raises RecordsError for a folder that is named like an image, OSError for one that cannot be read.
    """

    def __init__(self, root: Path, progress: Progress) -> None:
        self.folders: list[str] = []  # directly in `root`, sorted
        self.files: list[str] = []  # images, relative to `root`; by folder, then by name
        self.ignored: Counter[str] = Counter()  # other files, by kind
        self._root = root
        self._seen = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}
        self._todo, self._links = [""], list[str]()
        found: list[tuple[str, str]] = []
        count = 0
        while self._todo or self._links:
            if not self._todo:
                self._visit(self._links.pop(0))
                continue
            folder = self._todo.pop()
            found += [(folder, name) for name in self._read(folder)]
            count += 1
            progress.show(count)
        self.folders.sort()
        self.files = [f"{folder}/{name}".lstrip("/") for folder, name in sorted(found)]

    def _read(self, folder: str) -> list[str]:
        """The images directly in a folder."""
        images = []
        with os.scandir(self._root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}".lstrip("/")
                if hidden := hidden_kind(entry.name):
                    self.ignored[hidden] += 1
                elif _is_folder(entry):
                    if is_image(entry.name):
                        raise RecordsError(f"{self._root / path} is a folder named like an image; rename or remove it")
                    if entry.is_symlink():
                        self._links.append(path)
                    else:
                        self._visit(path)
                elif is_image(entry.name):
                    images.append(entry.name)
                else:
                    self.ignored[kind(entry.name)] += 1
        self._links.sort()
        return images

    def _visit(self, path: str) -> None:
        identity = _identity(self._root / path)
        if identity in self._seen:
            self.ignored[_REPEATED] += 1
            return
        self._seen.add(identity)
        self._todo.append(path)
        if "/" not in path:
            self.folders.append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: a file that cannot be read
        return False


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
