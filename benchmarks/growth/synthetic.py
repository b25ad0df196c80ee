"""Records of any number of images that are drawn, a few of them again and again."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from equimod.pipelines.conversion.check import CheckedImage, Encoding
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.conversion.source import Item, Source

DIFFERENT = 64
"""Images that the others are copies of."""
CLASSES = 1000
SIDE = 64  # pixels
Format = Literal["tar", "beton"]


@dataclass(frozen=True)
class Drawn:
    """The reader of drawn images, whose files have `length` bytes."""

    length: int

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        """The image as a file. It is not decoded: the conversion's own work is measured."""
        return CheckedImage(_jpeg(item.index % DIFFERENT, self.length), (SIDE, SIDE), (SIDE, SIDE))

    def mark(self, item: Item) -> tuple[int, ...]:
        return (self.length,)


def path_of(folder: Path, images: int, kilobytes: int, form: Format) -> Path:
    """Where the records of so many images lie."""
    return folder / f"images-{images}-{kilobytes}.{form}"


def made_records(folder: Path, images: int, kilobytes: int, form: Format) -> Path:
    """The records of so many images, made where they are not there."""
    path = path_of(folder, images, kilobytes, form)
    if not path.exists():
        make_records(path, images, kilobytes)
    return path


def make_records(path: Path, images: int, kilobytes: int) -> None:
    """Write the records at a path of `path_of`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = [Item(index, f"{index % CLASSES:04}/{index:09}.jpg", index % CLASSES) for index in range(images)]
    source = Source(path.with_suffix(""), [f"{label:04}" for label in range(CLASSES)], items, Drawn(kilobytes * 1024))
    how: Callable[..., object] = convert if path.suffix == ".tar" else convert_to_beton
    how(source, path, ConversionSettings(workers=os.cpu_count() or 1))


@lru_cache(maxsize=DIFFERENT)
def _jpeg(number: int, length: int) -> bytes:
    """A small image in a file of so many bytes, or as few as it can have; what is missing are comments."""
    rng, buffer = np.random.default_rng(number), io.BytesIO()
    few = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(few).resize((SIDE, SIDE)).save(buffer, "JPEG")
    content, comments = buffer.getvalue(), b""
    while (missing := length - len(content) - len(comments)) > 4:
        part = min(missing - 2, 65_535)
        comments += b"\xff\xfe" + part.to_bytes(2, "big") + rng.bytes(part - 2)
    return content[:2] + comments + content[2:]
