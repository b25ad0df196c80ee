"""Image files: of trees of one folder a class, as torchvision.datasets.ImageFolder reads them, of folders, of lists."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.codec import DamagedImageError, open_image
from equimod.pipelines.progress import Progress
from equimod.pipelines.records.header_cache import read_headers
from equimod.pipelines.records.image_names import IMAGE_EXTENSIONS, say_once, tell_ignored
from equimod.pipelines.records.protocol import RecordsError, edges_checksum, nothing
from equimod.pipelines.records.walk import Walk
from equimod.pipelines.stored import open_regular

SPLITS = {"train", "training", "val", "valid", "validation", "test"}
Labels = Literal["auto", "folder", "none"]
"""What labels the images of a folder have: the name of the first folder on their way, or none. auto: that name where
every image lies in a folder directly below, none where every image lies in the folder itself; otherwise it asks."""
LISTS = (".txt", ".tsv", ".csv")
SURVEYED = 100


@dataclass(frozen=True)
class ImageTree:
    """Samples that are files: of a folder in torchvision's order, of a list in its own."""

    root: Path
    classes: list[str]  # sorted, position = label; empty without labels
    names: list[str]  # relative to root; position = index of the sample
    labels: list[int]  # -1 without labels

    def path(self, index: int) -> Path:
        return self.root / self.names[index]


def _unreadable(error: OSError) -> NoReturn:
    raise RecordsError(
        f"{error.filename} cannot be read: {error.strerror}; check the path and its permissions"
    ) from error


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def scan(path: Path, labels: Labels = "auto") -> ImageTree:
    """The images of a folder or of a list of images. Raises RecordsError."""
    return scan_list(path, labels) if path.suffix in LISTS and not path.is_dir() else scan_tree(path, labels)


def scan_tree(root: Path, labels: Labels = "auto") -> ImageTree:
    """List the images of a folder; none is opened.

    Raises RecordsError where it is missing, unreadable, without images, holds several splits, or where `labels` are
    "auto" and its folders may or may not be classes. What is ignored, and classes without images, are told.
    """
    try:
        if not root.exists():
            raise RecordsError(f"{root} does not exist; give a folder of images")
        if not root.is_dir():
            raise RecordsError(f"{root} is no folder of images; give one, or a list that ends in {', '.join(LISTS)}")
        with Progress("listing", "folders") as progress:
            walk = Walk(root, progress)
    except OSError as error:
        _unreadable(error)
    if walk.files:
        tell_ignored(root, walk.ignored)
    if labels == "none":
        return _without_labels(root, walk.files)
    below: dict[str, list[str]] = {name: [] for name in ("", *walk.folders)}
    for path in walk.files:
        below[path[: path.find("/") + 1].rstrip("/")].append(path)
    directly = below.pop("")
    nested = [name for name, paths in below.items() if paths and all(path.count("/") > 1 for path in paths)]
    if splits := [name for name in nested if name.lower() in SPLITS]:
        one = "train" if "train" in splits else splits[0]
        raise RecordsError(f"{root} holds splits, not classes ({', '.join(splits)}); give one, such as {root / one}")
    if not folders_are_classes(root, walk.files, labels):
        return _without_labels(root, directly)
    if empty := [name for name, paths in below.items() if not paths]:
        say_once(f"{root}: classes without images: {_shorten(empty)}")
    numbers = [label for label, paths in enumerate(below.values()) for _ in paths]
    return ImageTree(root, walk.folders, [path for paths in below.values() for path in paths], numbers)


def folders_are_classes(path: Path, names: Sequence[str], labels: Labels) -> bool:
    """Whether the first folder of each of the images `names` is its label, as `labels` says of the images in `path`.

    RecordsError where that is not plain, and where there are no images or no folders that could be classes.
    """
    if not names:
        raise no_images(path)
    levels = {name.count("/") for name in names}
    if labels == "none" or (labels == "auto" and levels == {0}):
        return False
    if labels == "auto" and levels != {1}:
        where = "beside folders of images" if 0 in levels else "in folders of folders"
        raise RecordsError(
            f"{path} holds images {where}: give --labels folder where the first folder is the class of an image, "
            "--labels none where folders mean nothing"
        )
    if levels == {0}:
        raise RecordsError(f"{path} holds no folders that could be classes; leave --labels out")
    return True


def no_images(path: Path) -> RecordsError:
    """The error about a folder or an archive without images."""
    return RecordsError(f"{path} holds no images ({', '.join(IMAGE_EXTENSIONS)}); give a folder that does")


def scan_list(file: Path, labels: Labels = "auto") -> ImageTree:
    """The images that a list names: a path a line, or a path and a label, parted by a tab, in .csv by a comma.

    Paths are relative to the list's folder. Raises RecordsError where it is no such list, or has labels in some lines
    only.
    """
    try:
        with open_regular(file) as opened:
            text = io.StringIO(opened.read().decode("utf-8-sig"), newline="")
        rows = [row for row in csv.reader(text, delimiter="," if file.suffix == ".csv" else "\t") if row]
    except OSError as error:
        _unreadable(error)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordsError(f"{file} is no list of images in UTF-8 ({error}); write it anew") from error
    if not rows:
        raise RecordsError(f"{file} names no images; write the path of one into each line")
    lengths = {len(row) for row in rows}
    if lengths not in ({1}, {2}):
        line = next(number for number, row in enumerate(rows, 1) if len(row) != len(rows[0]) or len(row) > 2)
        raise RecordsError(f"{file}: entry {line} does not hold a path, or a path and a label, as the first one does")
    names = [row[0] for row in rows]
    if wrong := next((number for number, name in enumerate(names, 1) if "\0" in name), None):
        raise RecordsError(f"{file}: entry {wrong} holds a NUL, which no path does; correct it")
    if lengths == {1} or labels == "none":
        return ImageTree(file.parent, [], names, [-1] * len(names))
    classes = sorted({row[1] for row in rows})
    number = {name: label for label, name in enumerate(classes)}
    return ImageTree(file.parent, classes, names, [number[row[1]] for row in rows])


def _without_labels(root: Path, names: list[str]) -> ImageTree:
    if not names:
        raise no_images(root)
    return ImageTree(root, [], names, [-1] * len(names))


def _header(path: Path) -> tuple[int, int, int, int, int]:
    """Width, height in pixels, length in bytes, checksum, and nanoseconds of the last change of an image file."""
    try:
        with open_regular(path) as file, open_image(file) as image:
            found = os.fstat(file.fileno())
            checksum = edges_checksum(partial(os.pread, file.fileno()), found.st_size)
            return *image.size, found.st_size, checksum, found.st_mtime_ns
    except (OSError, DamagedImageError) as error:
        raise RecordsError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; repair or remove it, or leave such "
            "images out with equimod convert --on-error skip"
        ) from error


def survey_files(path: Path, labels: Labels = "auto") -> tuple[int, NDArray[np.int32]]:
    """The number of images of a folder or a list, and width and height of SURVEYED of them. Raises RecordsError."""
    tree = scan(path, labels)
    count = len(tree.names)
    some = sorted({number * count // SURVEYED for number in range(SURVEYED)})
    return count, np.array([_header(tree.path(position))[:2] for position in some], dtype=np.int32)


class FolderRecords:
    """Records read straight from the files of a folder or a list.

    Opening it reads the header of every image, or of those that changed where there are many.
    Raises RecordsError where the folder is unusable (see `scan_tree`) or a header is damaged.
    """

    def __init__(self, path: Path, labels: Labels = "auto") -> None:
        self._tree = scan(path, labels)
        count = len(self._tree.names)
        headers = read_headers(self._tree.root, self._tree.names, _header, count=5)
        self.classes = self._tree.classes
        self.label = np.array(self._tree.labels, dtype=np.int64)
        self.index = np.arange(count, dtype=np.int64)
        self.size = self.stored_size = headers[:, :2].astype(np.int32)
        self.remark = nothing(count)
        self.raw = False
        self.manifest, self.form = None, "list of images" if path.is_file() else "folder of images"
        self.length, self.checksum, self.changed = headers[:, 2:].T

    def __len__(self) -> int:
        return len(self.index)

    def read(self, position: int) -> bytes:
        """The file as it is. Raises RecordsError where it cannot be read."""
        try:
            with open_regular(self._tree.path(position)) as file:
                return file.read()
        except OSError as error:
            _unreadable(error)

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Nothing: to open a file takes as long as to read it. Convert trees that do not fit into memory."""

    def wont_read(self, positions: NDArray[np.int64]) -> None:
        """Nothing, for the same reason."""

    def source(self, position: int) -> str:
        """Path of the image, relative to the tree."""
        return self._tree.names[position]

    def name(self, position: int) -> str:
        """Path of the image."""
        return str(self._tree.path(position))
