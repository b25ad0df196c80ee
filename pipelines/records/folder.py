"""ImageFolder trees: one folder a class, indexed as torchvision.datasets.ImageFolder does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from equimod.pipelines.records.protocol import RecordsError, content_digest

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
SPLITS = {"train", "training", "val", "valid", "validation", "test"}
HEADER_THREADS = 16  # they wait for the disk, not for a core


@dataclass(frozen=True)
class ImageTree:
    """The samples of an ImageFolder tree, in torchvision's order."""

    root: Path
    classes: list[str]  # sorted, position = label
    names: list[str]  # relative to root, parts separated by "/"; position = index of the sample
    labels: list[int]

    def path(self, index: int) -> Path:
        return self.root / self.names[index]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _unreadable(error: OSError) -> NoReturn:
    raise RecordsError(
        f"{error.filename} cannot be read: {error.strerror}; check the path and its permissions"
    ) from error


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _class_images(root: Path, name: str) -> list[str]:
    """Images of one class, relative to `root`, in the order of torchvision's make_dataset."""
    images = []
    for parent, _, files in sorted(os.walk(root / name, followlinks=True, onerror=_unreadable)):
        if _is_image(parent):
            raise RecordsError(f"{parent} is a folder named like an image; rename or remove it")
        relative = Path(parent).relative_to(root).as_posix()
        images += [f"{relative}/{file}" for file in sorted(filter(_is_image, files))]
    return images


def scan_tree(root: Path) -> ImageTree:
    """List the images of the ImageFolder tree `root`; none is opened.

    Raises RecordsError where the tree is missing, unreadable, empty, has an empty class or holds several splits.
    """
    try:
        if not root.exists():
            raise RecordsError(f"{root} does not exist; give a folder that holds one sub-folder of images a class")
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        _unreadable(error)
    if not classes:
        raise RecordsError(f"{root} holds no class folders; give a folder that holds one sub-folder of images a class")
    images = [_class_images(root, name) for name in classes]
    nested = [name for name, paths in zip(classes, images, strict=True) if all(path.count("/") > 1 for path in paths)]
    if splits := [name for name in nested if name.lower() in SPLITS]:
        one = "train" if "train" in splits else splits[0]
        raise RecordsError(f"{root} holds splits, not classes ({', '.join(splits)}); give one, such as {root / one}")
    if empty := [name for name, paths in zip(classes, images, strict=True) if not paths]:
        raise RecordsError(f"{root} has classes without images: {_shorten(empty)}; fill or remove these folders")
    labels = [label for label, paths in enumerate(images) for _ in paths]
    return ImageTree(root, classes, [path for paths in images for path in paths], labels)


def _header(path: Path) -> tuple[int, int, int]:
    """Width, height in pixels and length in bytes of an image file."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return *image.size, os.fstat(file.fileno()).st_size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no image, or a damaged one"
        raise RecordsError(
            f"{path} cannot be read: {reason}; repair or remove it, or leave such images out with "
            "equimod convert --on-error skip"
        ) from error


class FolderRecords:
    """Records read straight from an ImageFolder tree.

    Opening it reads the header of every image.
    Raises RecordsError where the tree is unusable (see `scan_tree`) or a header is damaged.
    """

    def __init__(self, root: Path) -> None:
        self._tree = scan_tree(root)
        count = len(self._tree.names)
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            headers = np.array(list(pool.map(_header, map(self._tree.path, range(count)))), dtype=np.int64)
        self.classes = self._tree.classes
        self.label = np.array(self._tree.labels, dtype=np.int64)
        self.index = np.arange(count, dtype=np.int64)
        self.size = self.stored_size = headers[:, :2].astype(np.int32)
        self.raw = False
        self.manifest, self.form = None, "folder of images"
        self.length = headers[:, 2]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, position: int) -> bytes:
        """The file as it is. Raises RecordsError where it cannot be read."""
        try:
            return self._tree.path(position).read_bytes()
        except OSError as error:
            _unreadable(error)

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Nothing: to open a file takes as long as to read it. Convert trees that do not fit into memory."""

    def source(self, position: int) -> str:
        """Path of the image, relative to the tree."""
        return self._tree.names[position]

    def name(self, position: int) -> str:
        """Path of the image."""
        return str(self._tree.path(position))

    def fingerprint(self) -> str:
        """Hexadecimal digest, equal for equal samples in the same order."""
        return content_digest(self.classes, self.index, self.label, self.size, self.length)
