"""Records in webdataset tar shards, each with DALI's index (.idx, v1.2) beside it.

shard-000000.tar   members of a sample: KEY.jpg (or .png), KEY.cls (label), KEY.json; KEY: index in the source, 9 digits
shard-000000.idx   what NVIDIA's wds2idx writes
samples.npy        where each sample lies, with its label, sizes and checksum: opening touches no shard
classes.json       class names, position = label
manifest.json      counts, digests of all other files and of itself, what was re-encoded or left out; written last, so
                   its presence means complete
"""

from __future__ import annotations

import io
import json
import resource
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.progress import track
from equimod.pipelines.records.file_reader import FileReader, merged
from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.protocol import RecordsError, damaged, is_possible
from equimod.pipelines.stored import DamagedFileError, Digests, FileDigest, decode_json, read_bytes

FORM = ("equimod-tar", 3)
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
        return Manifest.parse(read_bytes(path), str(path), FORM)
    except DamagedFileError as error:
        raise RecordsError(f"{error}; check its permissions") from error


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


class TarRecords:
    """Random access to the samples of tar shards, each opened at its first use; the first is closed where too many are.

    Raises RecordsError where the small files are damaged, or a shard is missing or of another length.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = load_manifest(folder)
        self.form = f"tar shards with DALI's index, {len(self.manifest.shards):,} shards"
        digests = Digests(self.manifest.files)
        try:
            classes = digests.read_file(folder, CLASSES)
            self.classes = decode_json(classes, list[str], str(folder / CLASSES))
            self._table = _table(digests.read_file(folder, SAMPLES), folder / SAMPLES)
        except DamagedFileError as error:
            raise RecordsError(f"{error}; copy the records or convert again") from error
        if len(self._table) != self.manifest.samples:
            raise RecordsError(f"{folder / SAMPLES} does not fit {MANIFEST}; copy the records or convert again")
        self._check_shards()
        self.label = self._table["label"].astype(np.int64)
        self.index = self._table["index"].astype(np.int64)
        self.size = np.stack([self._table["width"], self._table["height"]], axis=1)
        self.stored_size = np.stack([self._table["stored_width"], self._table["stored_height"]], axis=1)
        self.length = self._table["size"].astype(np.int64)
        self.checksum = self._table["crc32"].astype(np.int64)
        self.changed = np.zeros(len(self._table), dtype=np.int64)
        self.raw = False
        if not is_possible(self):
            raise RecordsError(f"{folder / SAMPLES} holds what cannot be true; copy the records or convert again")
        self._files: dict[int, FileReader] = {}
        self._opening = threading.Lock()
        self._most_files = _files_to_open(len(self.manifest.shards))

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

    def _open(self, shard: int) -> FileReader:
        if (file := self._files.get(shard)) is not None:
            return file
        with self._opening:
            if (file := self._files.get(shard)) is None:
                file = FileReader(self.folder / shard_name(shard))
                if len(self._files) >= self._most_files:
                    del self._files[next(iter(self._files))]  # which closes it once nobody reads it any more
                self._files[shard] = file
            return file

    def read(self, position: int) -> bytes:
        """The encoded image.

        Raises RecordsError where the shard cannot be read or the image does not have its checksum.
        """
        row = self._table[position]
        content = self._open(int(row["shard"])).read(int(row["offset"]), int(row["size"]))
        if zlib.crc32(content) != row["crc32"]:
            raise damaged(self.name(position))
        return content

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system load these images ahead of `read`. A shard that cannot be opened is left to `read`."""
        for shard, offset, length in self._requests(positions):
            with suppress(RecordsError):
                self._open(shard).will_read(offset, length)

    def wont_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system forget these images."""
        for shard, offset, length in self._requests(positions):
            with suppress(RecordsError):
                self._open(shard).wont_read(offset, length)

    def _requests(self, positions: NDArray[np.int64]) -> Iterator[list[int]]:
        rows = self._table[positions]
        return merged(rows["shard"], rows["offset"], rows["size"])

    def name(self, position: int) -> str:
        """Path in the source and the shard, as `n01440764/x.JPEG (records/shard-000003.tar)`."""
        shard = shard_name(int(self._table[position]["shard"]))
        return f"{self.source(position)} ({self.folder.name}/{shard})"

    def source(self, position: int) -> str:
        """The sample's path in the source; `sample INDEX` where the shard is damaged at that place."""
        row = self._table[position]
        offset = int(row["offset"]) + int(row["size"])
        try:
            file = self._open(int(row["shard"]))
            for _ in ("cls", "json"):
                header = -(-offset // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                offset = header + tarfile.BLOCKSIZE
                block = file.read(header, tarfile.BLOCKSIZE)
                size = tarfile.TarInfo.frombuf(block, "ascii", "strict").size
                start, offset = offset, offset + size
            return str(json.loads(file.read(start, size))["name"])
        except (tarfile.TarError, RecordsError, ValueError, KeyError, TypeError, RecursionError):
            return f"sample {int(row['index'])}"  # an error about a damaged shard must not end in another error

    def verify(self) -> None:
        """Read every shard and its index and compare their digests. RecordsError naming the first that differs."""
        for shard in track(self.manifest.shards, len(self.manifest.shards), "verifying", "shards"):
            path = self.folder / shard.name
            for file, sha256 in ((path, shard.sha256), (path.with_suffix(".idx"), shard.index_sha256)):
                try:
                    found = FileDigest.of(file).sha256
                except OSError as error:
                    raise RecordsError(f"{file} cannot be read ({error.strerror}); copy it or convert again") from error
                if found != sha256:
                    raise RecordsError(f"{file} does not have the digest of {MANIFEST}; copy it or convert again")


def _table(content: bytes, path: Path) -> NDArray[np.void]:
    try:
        table: NDArray[np.void] = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # np.load raises anything
        raise DamagedFileError(f"{path} is damaged ({error})") from error
    if table.dtype != SAMPLE or table.ndim != 1:
        raise DamagedFileError(f"{path} is damaged: it is no table of samples")
    return table


def _files_to_open(shards: int) -> int:
    """How many shards may be open at a time: all, where this process's limit of open files can be raised so far, since
    ImageNet has more shards than the 1,024 files that are usual.
    """
    wanted = shards + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return shards if soft == resource.RLIM_INFINITY else max(1, min(shards, soft - SPARE_FILES))
