"""The one rule of what is an image by its name, in folders and in archives; all else is counted by kind and told."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

from equimod.pipelines.errors import counted, one_line

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),  # torchvision's
    *(".jpe", ".jfif", ".gif", ".avif", ".jp2", ".j2k", ".jpx", ".apng", ".pbm", ".pnm", ".dib", ".qoi"),
)
_MAC = "__MACOSX"  # the folder of resource forks in an archive from a Mac
T = TypeVar("T")


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def hidden_kind(name: str) -> str | None:
    """The kind of a file or a folder that is looked over, such as .ipynb_checkpoints or ._1.jpg; None for any other."""
    return _MAC if name == _MAC else "hidden" if name.startswith(".") else None


def kind(name: str) -> str:
    """The kind of a file that is no image: its extension."""
    return PurePosixPath(name).suffix.lower() or "without an extension"


def images_of(files: Iterable[tuple[str, T]]) -> tuple[list[T], Counter[str]]:
    """Of files by their path in an archive, those that are images, and how many others there are of each kind."""
    images: list[T] = []
    ignored: Counter[str] = Counter()
    for path, file in files:
        hidden = hidden_of(path)
        if hidden or not is_image(path):
            ignored[hidden or kind(path)] += 1
        else:
            images.append(file)
    return images, ignored


def hidden_of(path: str) -> str | None:
    """As `hidden_kind`, of a path in an archive."""
    return next((found for part in PurePosixPath(path).parts if (found := hidden_kind(part))), None)


def tell_ignored(path: Path, ignored: Counter[str]) -> None:
    """Say what there is beside images in `path`, in one line: `ignored: 3 .txt, 1 .heic`."""
    if ignored:
        say_once(f"{path}: ignored: {counted(ignored.elements())}")


@cache
def say_once(line: str) -> None:
    """Print a line to stderr, the first time that this process is to; of several ranks, the first alone does."""
    if os.environ.get("RANK", "0") == "0":
        print(one_line(line), file=sys.stderr, flush=True)
