"""CIFAR-10 from the files that torchvision downloads, pixel for pixel: images become PNG files, which lose nothing."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.codec import encode_png
from equimod.pipelines.conversion.check import CheckedImage, Encoding, reduced
from equimod.pipelines.conversion.source import Item, Source
from equimod.pipelines.progress import track
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.stored import open_regular, read_bytes

FOLDER, ARCHIVE, NAMES = "cifar-10-batches-py", "cifar-10-python.tar.gz", "batches.meta"
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
SIDE = 32
Split = Literal["train", "test"]


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and Python's own containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return super().find_class("numpy._core.multiarray", name)  # numpy 2 moved it
        if (module, name) not in {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


@dataclass(frozen=True)
class CifarReader:
    """Images of one of the batches; an item's place is the number of the batch and the row in it."""

    path: Path  # the folder or the archive
    split: Split

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        batch, row = item.place
        pixels, _, _ = _batch(self.path, BATCHES[self.split][batch])
        return reduced(encode_png(pixels[row]), (SIDE, SIDE), (SIDE, SIDE), encoding)

    def mark(self, item: Item) -> tuple[int, ...]:
        pixels, _, _ = _batch(self.path, BATCHES[self.split][item.place[0]])
        return (zlib.crc32(pixels[item.place[1]]),)


def cifar10_source(path: Path, split: Split) -> Source:
    """A split of CIFAR-10, in the order of torchvision's data set.

    `path` is the root that torchvision is given, or the folder or archive in it.
    Raises RecordsError where the files are missing or damaged.
    """
    for candidate in (path / FOLDER, path / ARCHIVE, path):
        if (candidate / NAMES).is_file() or candidate.is_file():
            path = candidate
            break
    else:
        raise RecordsError(
            f"{path} holds neither {FOLDER} nor {ARCHIVE}; give the folder that torchvision downloads to"
        )
    classes = _unpickled(path, NAMES).get("label_names")
    if not isinstance(classes, list) or len(classes) != 10:
        raise _damaged(path, NAMES, "it does not name ten classes")
    items: list[Item] = []
    for number, name in enumerate(track(BATCHES[split], len(BATCHES[split]), "reading", "files")):
        _, labels, files = _batch(path, name)
        items += [
            Item(len(items) + row, f"{classes[label]}/{file}", label, (number, row))
            for row, (label, file) in enumerate(zip(labels, files, strict=True))
        ]
    return Source(path, classes, items, CifarReader(path, split))


@lru_cache(maxsize=2)
def _batch(path: Path, name: str) -> tuple[NDArray[np.uint8], list[int], list[str]]:
    """Pixels (N,32,32,3), labels and file names of a batch."""
    batch = _unpickled(path, name)
    pixels, labels, files = (batch.get(key) for key in ("data", "labels", "filenames"))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (3 * SIDE * SIDE,)
        or not isinstance(labels, list)
        or not isinstance(files, list)
        or not len(pixels) == len(labels) == len(files)
        or not set(labels) <= set(range(10))
    ):
        raise _damaged(path, name, "it does not hold images of 32x32 pixels with labels and names")
    return np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels, files


def _unpickled(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.is_dir():
            content = read_bytes(path / name)
        else:
            with open_regular(path) as packed, tarfile.open(fileobj=packed) as archive:
                file = archive.extractfile(f"{FOLDER}/{name}")
                assert file is not None
                content = file.read()
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path, name, error) from error
    if not isinstance(batch, dict):
        raise _damaged(path, name, "it holds no dictionary")
    return batch


def _damaged(path: Path, name: str, reason: object) -> RecordsError:
    return RecordsError(f"{path}: {name} cannot be read as a file of CIFAR-10 ({reason}); download it again")
