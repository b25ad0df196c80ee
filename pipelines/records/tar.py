"""Records in webdataset tar shards, each with DALI's index (.idx, v1.2) beside it.

shard-000000.tar   members of a sample: KEY.jpg (or .png), KEY.cls (label), KEY.json; KEY: index in the source, 9 digits
shard-000000.idx   what NVIDIA's wds2idx writes
samples.npy        where each sample lies, with its label, sizes and checksum: opening touches no shard
classes.json       class names, position = label
manifest.json      counts, checksums, what was re-encoded or left out; written last, so its presence means complete
"""

from __future__ import annotations

import hashlib
import json
import mmap
import resource
import tarfile
import threading
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.progress import track
from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.protocol import RecordsError, content_digest, damaged
from equimod.pipelines.records.read_ahead import read_ahead

FORM = ("equimod-tar", 2)
MANIFEST, CLASSES, SAMPLES = "manifest.json", "classes.json", "samples.npy"
PROGRESS = ".progress"  # folder of an unfinished conversion
SPARE_FILES = 256  # descriptors left for everything but the shards
SAMPLE = np.dtype(
    [
        ("shard", "<i4"),  # number in the shard's name
        ("offset", "<i8"),  # of the image in the shard, bytes
        ("size", "<i8"),  # of the image, bytes
        ("crc32", "<u4"),  # of the image
        ("index", "<i8"),  # position in the source
        ("label", "<i4"),
        ("width", "<i4"),  # of the original image, pixels
        ("height", "<i4"),
        ("stored_width", "<i4"),  # of the image in the shard, pixels
        ("stored_height", "<i4"),
    ]
)


def load_manifest(folder: Path) -> Manifest:
    """Read manifest.json of `folder`. Raises RecordsError where it is damaged or of another format version."""
    path = folder / MANIFEST
    try:
        text = path.read_text()
    except OSError as error:
        raise RecordsError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise RecordsError(f"{path} cannot be read as a manifest of records; convert the source again") from error
    return Manifest.parse(text, str(path), FORM)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TarRecords:
    """Random access to the samples of tar shards, through one memory map a shard, opened at its first use.

    Raises RecordsError where a shard is missing or shorter than its table says, or the format is another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = load_manifest(folder)
        self.form = f"tar shards with DALI's index, {len(self.manifest.shards):,} shards"
        try:
            self.classes: list[str] = json.loads((folder / CLASSES).read_bytes())
            self._table: NDArray[np.void] = np.load(folder / SAMPLES, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:  # the last two are of np.load
            raise RecordsError(
                f"{folder}: {CLASSES} or {SAMPLES} cannot be read ({error}); copy the records or convert again"
            ) from error
        if self._table.dtype != SAMPLE or len(self._table) != self.manifest.samples:
            raise RecordsError(f"{folder / SAMPLES} does not fit {MANIFEST}; copy the records or convert again")
        self._check_shards()
        self.label = self._table["label"].astype(np.int64)
        self.index = self._table["index"].astype(np.int64)
        self.size = np.stack([self._table["width"], self._table["height"]], axis=1)
        self.stored_size = np.stack([self._table["stored_width"], self._table["stored_height"]], axis=1)
        self.length = self._table["size"].astype(np.int64)
        self.raw = False
        self._maps: dict[int, mmap.mmap] = {}
        self._opening = threading.Lock()
        _allow_open_files(len(self.manifest.shards) + SPARE_FILES)

    def _check_shards(self) -> None:
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            try:
                found = path.stat().st_size
            except OSError as error:
                raise RecordsError(f"{path} cannot be read ({error.strerror}); copy it or convert again") from error
            if found != shard.bytes:
                raise RecordsError(
                    f"{path} has {found:,} bytes where {MANIFEST} says {shard.bytes:,}; copy it or convert again"
                )

    def __len__(self) -> int:
        return len(self._table)

    def _open(self, shard: int) -> mmap.mmap:
        if shard in self._maps:
            return self._maps[shard]
        with self._opening:
            if shard not in self._maps:
                path = self.folder / shard_name(shard)
                try:
                    with path.open("rb") as file:
                        self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:
                    raise RecordsError(
                        f"{path} cannot be opened: {error}; where it says too many open files, raise `ulimit -n` "
                        "or convert with a larger --shard-size"
                    ) from error
            return self._maps[shard]

    def _bytes(self, shard: int, offset: int, size: int) -> memoryview:
        content = self._open(shard)
        if offset + size > len(content):
            raise RecordsError(
                f"{self.folder / shard_name(shard)} ends at byte {len(content):,}, before {offset + size:,} where its "
                "sample does; copy it or convert again"
            )
        return memoryview(content)[offset : offset + size]

    def read(self, position: int) -> memoryview:
        """The encoded image, a view into the mapped shard.

        Raises RecordsError where the shard cannot be read or the image does not have its checksum.
        """
        row = self._table[position]
        content = self._bytes(int(row["shard"]), int(row["offset"]), int(row["size"]))
        if zlib.crc32(content) != row["crc32"]:
            raise damaged(self.name(position))
        return content

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system load these images ahead of `read`. A shard that cannot be opened is left to `read`."""
        for row in self._table[positions]:
            with suppress(RecordsError):
                read_ahead(self._open(int(row["shard"])), int(row["offset"]), int(row["size"]))

    def name(self, position: int) -> str:
        """Path in the source and the shard, as `n01440764/x.JPEG (records/shard-000003.tar)`."""
        shard = shard_name(int(self._table[position]["shard"]))
        return f"{self.source(position)} ({self.folder.name}/{shard})"

    def source(self, position: int) -> str:
        """The sample's path in the source; `sample INDEX` where the shard is damaged at that place."""
        row = self._table[position]
        shard, offset = int(row["shard"]), int(row["offset"]) + int(row["size"])
        try:
            for _ in ("cls", "json"):
                header = -(-offset // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                offset = header + tarfile.BLOCKSIZE
                block = bytes(self._bytes(shard, header, tarfile.BLOCKSIZE))
                size = tarfile.TarInfo.frombuf(block, "ascii", "strict").size
                start, offset = offset, offset + size
            return str(json.loads(bytes(self._bytes(shard, start, size)))["name"])
        except (tarfile.TarError, RecordsError, ValueError, KeyError):
            return f"sample {int(row['index'])}"  # an error about a damaged shard must not end in another error

    def fingerprint(self) -> str:
        """Hexadecimal digest, equal for equal samples in the same order."""
        return content_digest(self.classes, self.index, self.label, self.size, self.length)

    def verify(self) -> None:
        """Read every shard and compare its checksum. Raises RecordsError naming the first one that differs."""
        for shard in track(self.manifest.shards, len(self.manifest.shards), "verifying", "shards"):
            path = self.folder / shard.name
            if file_checksum(path) != shard.sha256:
                raise RecordsError(f"{path} does not have the checksum of {MANIFEST}; copy it or convert again")


def _allow_open_files(wanted: int) -> None:
    """Raise this process's limit of open files: a mapped shard holds one, and ImageNet has more shards than 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
