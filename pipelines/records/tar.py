"""Records in webdataset tar shards, each with DALI's index (.idx, v1.2) beside it.

shard-000000.tar   members of a sample: KEY.jpg (or .png), KEY.cls (label), KEY.json; KEY: index in the source, 9 digits
shard-000000.idx   what NVIDIA's wds2idx writes
samples.npy        where each sample lies, with its label, sizes and checksum: opening touches no shard
names.jsonl        paths of the samples in the source, read where one is asked for
classes.json       class names, position = label
manifest.json      counts, digests of all other files and of itself, what was re-encoded or left out; written last, so
                   its presence means complete
"""

from __future__ import annotations

import io
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.file_reader import FileReader, RandomAccess, merged, read_checked
from equimod.pipelines.records.manifest import Manifest, Shard
from equimod.pipelines.records.names import Names
from equimod.pipelines.records.protocol import RecordsError, damaged, is_possible, nothing, pairs, source_or_index
from equimod.pipelines.stored import DamagedFileError, Digests, FileDigest, decode_json, read_bytes

FORM = ("equimod-tar", 4)
MANIFEST, CLASSES, SAMPLES, NAMES = "manifest.json", "classes.json", "samples.npy", "names.jsonl"
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
        ("remark", "<u2"),  # of the manifest, from 1 on
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

    def __init__(self, folder: Path, open_elsewhere: Callable[[Shard], RandomAccess] | None = None) -> None:
        """`open_elsewhere` opens shards that do not lie in the folder."""
        self.folder = folder
        self._elsewhere = open_elsewhere
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
        names = self.manifest.files.get(NAMES)
        shards = [(shard.name, shard.bytes) for shard in self.manifest.shards if open_elsewhere is None]
        self._check_lengths([(NAMES, names.length if names else 0), *shards])
        self._names = Names(str(folder / NAMES), partial(_read_names, digests, folder))
        self.label = self._table["label"]
        self.index = self._table["index"]
        self.size = pairs(self._table, "width", "height")
        self.stored_size = pairs(self._table, "stored_width", "stored_height")
        self.length = self._table["size"]
        self.checksum = self._table["crc32"]
        self.changed = nothing(len(self._table))
        self.remark = self._table["remark"]
        self.raw = False
        if not is_possible(self):
            raise RecordsError(f"{folder / SAMPLES} holds what cannot be true; copy the records or convert again")
        self._files: dict[int, RandomAccess] = {}
        self._shards = {shard.name: shard for shard in self.manifest.shards if open_elsewhere}
        self._opening = threading.Lock()
        self._most_files = _files_to_open(len(self.manifest.shards))

    def _check_lengths(self, files: Iterable[tuple[str, int]]) -> None:
        for name, expected in files:
            path = self.folder / name
            try:
                found = path.stat().st_size
            except OSError as error:
                raise RecordsError(f"{path} cannot be read ({error.strerror}); copy it or convert again") from error
            if found != expected:
                raise RecordsError(
                    f"{path} has {found:,} bytes where {MANIFEST} says {expected:,}; copy it or convert again"
                )

    def __len__(self) -> int:
        return len(self._table)

    def _open(self, shard: int) -> RandomAccess:
        if (file := self._files.get(shard)) is not None:
            return file
        with self._opening:
            if (file := self._files.get(shard)) is None:
                name = shard_name(shard)
                file = self._elsewhere(self._shards[name]) if self._elsewhere else FileReader(self.folder / name)
                if len(self._files) >= self._most_files:
                    del self._files[next(iter(self._files))]  # which closes it once nobody reads it any more
                self._files[shard] = file
            return file

    def read(self, position: int) -> bytes:
        """The encoded image.

        Raises RecordsError where the shard cannot be read or the image does not have its checksum.
        """
        row = self._table[position]
        file = self._open(int(row["shard"]))
        content = read_checked(file, int(row["offset"]), int(row["size"]), row["crc32"])
        if content is None:
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
        return f"{source_or_index(self, position)} ({self.folder.name}/{shard})"

    def source(self, position: int) -> str:
        """The sample's path in the source. Raises RecordsError where the names are damaged."""
        return self._names.at(position)

    def verify_names(self) -> None:
        """Compare the names with their digest. Raises RecordsError."""
        self._names.read()

    def verify_shard(self, shard: Shard) -> None:
        """Compare a shard and its index with their digests. RecordsError naming the first that differs."""
        if self._elsewhere:  # where every image has been compared with its checksum
            return
        path = self.folder / shard.name
        for file, sha256 in ((path, shard.sha256), (path.with_suffix(".idx"), shard.index_sha256)):
            try:
                found = FileDigest.of(file).sha256
            except OSError as error:
                raise RecordsError(f"{file} cannot be read ({error.strerror}); copy it or convert again") from error
            if found != sha256:
                raise RecordsError(f"{file} does not have the digest of {MANIFEST}; copy it or convert again")


def _read_names(digests: Digests, folder: Path) -> bytes:
    try:
        return digests.read_file(folder, NAMES)
    except DamagedFileError as error:
        raise RecordsError(f"{error}; copy it or convert again") from error


def _table(content: bytes, path: Path) -> NDArray[np.void]:
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        shape, _, kind = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else ((), False, None)
        if kind != SAMPLE or len(shape) != 1:
            raise DamagedFileError(f"{path} is damaged: it is no table of samples")
        return np.frombuffer(content, SAMPLE, *shape, offset=file.tell())  # a view: np.load would copy
    except DamagedFileError:
        raise
    except Exception as error:  # numpy raises anything
        raise DamagedFileError(f"{path} is damaged ({error})") from error


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
