"""Records in webdataset tar shards, each with DALI's index (.idx, v1.2) beside it.

shard-000000.tar   members of a sample: KEY.jpg (or .png), KEY.cls (label), KEY.json; KEY: index in the source, 9 digits
shard-000000.idx   what NVIDIA's wds2idx writes
samples.npy        where each sample lies, with its label, sizes and checksum: opening touches no shard
classes.json       class names, position = label
manifest.json      counts, checksums, what was re-encoded or left out; written last, so its presence means complete
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import resource
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.codec import PNG_START
from equimod.pipelines.durable import durable_file
from equimod.pipelines.records.manifest import Manifest, Shard
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


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json into `folder`, durably."""
    with durable_file(folder / MANIFEST) as file:
        file.write(manifest.to_json(FORM).encode())


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Members of one shard into an open file; the same samples give the same bytes."""

    def __init__(self, file: BinaryIO, number: int) -> None:
        self.rows: list[tuple[int, ...]] = []  # fields of SAMPLE
        self._number = number
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._lines: list[str] = []

    def _member(self, name: str, content: bytes) -> tuple[int, str]:
        """Append a file; offset of its content and its entry for the index."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        offset = self._file.tell() + tarfile.BLOCKSIZE
        self._tar.addfile(header, io.BytesIO(content))
        return offset, f"{name.partition('.')[2]} {offset} {len(content)} {name}"

    def add(
        self, image: bytes, *, index: int, label: int, size: tuple[int, int], stored_size: tuple[int, int], name: str
    ) -> None:
        """Append a sample: the encoded image, width and height of the original and of it, its path in the source."""
        fields = {"index": index, "label": label, "width": size[0], "height": size[1], "name": name}
        kind = "png" if image.startswith(PNG_START) else "jpg"
        offset, entry = self._member(f"{index:09d}.{kind}", image)
        _, cls = self._member(f"{index:09d}.cls", str(label).encode())
        _, meta = self._member(f"{index:09d}.json", json.dumps(fields).encode())
        self._lines.append(f"{entry} {cls} {meta}\n")
        self.rows.append((self._number, offset, len(image), zlib.crc32(image), index, label, *size, *stored_size))

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    def dali_index(self) -> str:
        return "".join([f"v1.2 {len(self._lines)}\n", *self._lines])


@contextmanager
def write_shard(folder: Path, number: int) -> Iterator[ShardWriter]:
    """Shard `number` of `folder` and its index, there when the block ends without an exception; none if it is empty."""
    path = folder / shard_name(number)
    with durable_file(path) as file:
        writer = ShardWriter(file, number)
        yield writer
        writer.close()
    if not writer.rows:
        path.unlink()  # DALI rejects an index without samples
        return
    with durable_file(path.with_suffix(".idx")) as file:
        file.write(writer.dali_index().encode())


def describe_shard(folder: Path, number: int, samples: int) -> Shard:
    """The manifest's entry of a shard that is in place."""
    path = folder / shard_name(number)
    return Shard(path.name, samples, path.stat().st_size, _checksum(path))


def write_table(folder: Path, classes: list[str], rows: Iterable[tuple[int, ...]]) -> NDArray[np.void]:
    """Write samples.npy and classes.json, durably; the table, one element of type SAMPLE a sample."""
    table = np.array(list(rows), dtype=SAMPLE)
    with durable_file(folder / SAMPLES) as file:
        np.save(file, table, allow_pickle=False)
    with durable_file(folder / CLASSES) as file:
        file.write(json.dumps(classes).encode())
    return table


class TarRecords:
    """Random access to the samples of tar shards, through one memory map a shard, opened at its first use.

    Raises RecordsError where a shard is missing or shorter than its table says, or the format is another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = load_manifest(folder)
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

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read every shard and compare its checksum; `progress` is told the bytes read and those in all.

        Raises RecordsError naming the first shard that differs.
        """
        done = 0
        for shard in self.manifest.shards:
            path = self.folder / shard.name
            if _checksum(path) != shard.sha256:
                raise RecordsError(f"{path} does not have the checksum of {MANIFEST}; copy it or convert again")
            done += shard.bytes
            progress(done, self.manifest.bytes)


def _allow_open_files(wanted: int) -> None:
    """Raise this process's limit of open files: a mapped shard holds one, and ImageNet has more shards than 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
