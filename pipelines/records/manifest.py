"""What records say about themselves: counts, checksums, settings, and what was changed or left out on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.protocol import RecordsError


@dataclass(frozen=True)
class Note:
    """A sample that was not taken as it is, and why."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Shard:
    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of records in any format, all but the format's name and version."""

    source: str  # name of the source
    listing: str  # digest of the names, labels and sizes of the source's files
    max_side: int | None  # pixels of the longer side that larger images were reduced to
    quality: int | None  # of the JPEGs of reduced images
    raw: bool  # whether pixels are stored (in shards as PNG files), not the files of the source
    samples: int
    classes: int
    bytes: int  # of the images, or of the shards where there are any
    image_size: dict[str, dict[str, float]]  # smallest, mean and largest width and height of the originals in pixels
    shard_size: int | None  # source positions a shard
    shards: tuple[Shard, ...]
    reencoded: tuple[Note, ...]
    left_out: tuple[Note, ...]
    harmless: tuple[Note, ...] = ()  # what libjpeg warned of in images that are stored as they are

    @classmethod
    def parse(cls, text: str, name: str, expected: tuple[str, int]) -> Manifest:
        """Read a manifest of the `expected` format and version; `name` is where it lies, for errors.

        Raises RecordsError where it is damaged or of another format or version.
        """
        try:
            fields = json.loads(text)
            found = fields.pop("format"), fields.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RecordsError(f"{name} cannot be read as a manifest of records; convert the source again") from error
        if found != expected:
            raise RecordsError(
                f"{name} says format {found[0]} version {found[1]}, this program reads {expected[0]} version "
                f"{expected[1]}; convert the source again"
            )
        try:
            for key, kind in (("shards", Shard), ("reencoded", Note), ("left_out", Note), ("harmless", Note)):
                fields[key] = tuple(kind(**entry) for entry in fields.get(key, ()))
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise RecordsError(f"{name} has missing or unknown entries; convert the source again") from error

    def to_json(self, form: tuple[str, int]) -> str:
        """JSON text of a manifest of format and version `form`."""
        return json.dumps({"format": form[0], "version": form[1], **asdict(self)}, indent=1)


def image_size_statistics(size: NDArray[Any]) -> dict[str, dict[str, float]]:
    """Smallest, mean and largest width and height in pixels of images of `size` (N,2)."""
    sides: Sequence[str] = ("width", "height")
    return {
        side: {"min": int(column.min()), "mean": round(float(column.mean()), 2), "max": int(column.max())}
        for side, column in zip(sides, np.asarray(size).T, strict=True)
    }
