"""What records say about themselves: counts, checksums, settings, and what was changed or left out on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.stored import DamagedFileError, FileDigest, decode_json, seal, unsealed


@dataclass(frozen=True)
class Note:
    """A sample that was not taken, and why."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Remark:
    """What is to be said of samples that were taken."""

    reencoded: str | None  # why their bytes are not those of the source, None where they are
    harmless: tuple[str, ...]  # what libjpeg warned of in images that are stored as they are
    samples: int  # of which just this is to be said


@dataclass(frozen=True)
class Shard:
    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str  # of DALI's index beside it


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
    total_bytes: int  # of the images, or of the shards where there are any
    image_size: dict[
        str, dict[str, int | float]
    ]  # smallest, mean and largest width and height of the originals in pixels
    shard_size: int | None  # source positions a shard
    shards: tuple[Shard, ...]
    remarks: tuple[Remark, ...]  # which of them is that of a sample, see `Records.remark`
    left_out: tuple[Note, ...]
    files: dict[str, FileDigest]  # the other files beside the shards

    @property
    def reencoded(self) -> Counter[str]:
        """How many samples were encoded anew, by the reason."""
        return _weighed((r.reencoded, r.samples) for r in self.remarks if r.reencoded)

    @property
    def harmless(self) -> Counter[str]:
        """How often libjpeg warned of what is harmless, by the warning."""
        return _weighed((warning, r.samples) for r in self.remarks for warning in r.harmless)

    @classmethod
    def parse(cls, content: bytes, name: str, expected: tuple[str, int]) -> Manifest:
        """Read a manifest of the `expected` format and version; `name` is where it lies, for errors.

        Raises RecordsError where it is damaged or of another format or version.
        """
        try:
            form = decode_json(content, _Form, name)
            if (form.format, form.version) != expected:
                raise RecordsError(
                    f"{name} says format {form.format} version {form.version}, this program reads {expected[0]} "
                    f"version {expected[1]}; convert the source again"
                )
            manifest = decode_json(content, cls, name)
            if manifest.to_json(expected) != content:
                raise unsealed(name)
        except DamagedFileError as error:
            raise RecordsError(f"{error}; copy it again or convert the source again") from error
        return manifest

    def to_json(self, form: tuple[str, int]) -> bytes:
        """JSON text of a manifest of format and version `form`, with a digest of itself."""
        return seal({"format": form[0], "version": form[1], **asdict(self)})


def _weighed(reasons: Iterable[tuple[str, int]]) -> Counter[str]:
    count: Counter[str] = Counter()
    for reason, samples in reasons:
        count[reason] += samples
    return count


class _Form(msgspec.Struct):
    format: str
    version: int


def image_size_statistics(size: NDArray[Any]) -> dict[str, dict[str, int | float]]:
    """Smallest, mean and largest width and height in pixels of images of `size` (N,2)."""
    sides: Sequence[str] = ("width", "height")
    return {
        side: {"min": int(column.min()), "mean": round(float(column.mean()), 2), "max": int(column.max())}
        for side, column in zip(sides, np.asarray(size).T, strict=True)
    }
