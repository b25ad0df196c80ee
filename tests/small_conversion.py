"""The conversion of `image_tree`, 24 images in 5 shards, that several tests look at or begin anew."""

from __future__ import annotations

from pathlib import Path

SHARD_SIZE = 5


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
