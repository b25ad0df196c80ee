"""Archives as records: images that are read where they lie."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.codec import DamagedImageError, open_image
from equimod.pipelines.conversion.archive_source import ArchiveReader
from equimod.pipelines.conversion.source import Source
from equimod.pipelines.progress import track
from equimod.pipelines.records.header_cache import THREADS
from equimod.pipelines.records.protocol import RecordsError, nothing

HEADER = 64 * 2**10  # bytes, that tell the size of most images


class ArchiveRecords:
    """The images of archives as records. Opening them reads the header of every image.

    Raises RecordsError where one is damaged.
    """

    def __init__(self, source: Source) -> None:
        self._source, self._reader = source, archive_reader(source)
        self.classes = source.classes
        self.label = np.array([item.label for item in source.items], dtype=np.int64)
        self.index = np.arange(len(source.items), dtype=np.int64)
        self.length = np.array([self._reader.length(item) for item in source.items], dtype=np.int64)
        self.raw, self.manifest, self.form = False, None, "archive of images"
        headers = read_headers(source, range(len(source.items)))
        self.size = self.stored_size = headers[:, :2].astype(np.int32)
        self.checksum, self.remark = headers[:, 2], nothing(len(headers))
        self.changed = np.array([self._reader.changed(item) for item in source.items], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, position: int) -> bytes:
        """The file as it is. Raises RecordsError where it cannot be read."""
        try:
            return self._reader.content(self._source.items[position])
        except OSError as error:
            raise _unreadable(self.name(position), error.strerror or str(error)) from error

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Nothing: the system reads ahead as it sees fit."""

    def wont_read(self, positions: NDArray[np.int64]) -> None:
        """Nothing: it forgets as it sees fit."""

    def source(self, position: int) -> str:
        """Path of the image in the source."""
        return self._source.items[position].name

    def name(self, position: int) -> str:
        """The source, and the path there."""
        return f"{self._source.path}: {self._source.items[position].name}"


def archive_reader(source: Source) -> ArchiveReader:
    """The reader of a source that is an archive."""
    assert isinstance(source.reader, ArchiveReader)
    return source.reader


def read_headers(source: Source, positions: range) -> NDArray[np.int64]:
    """Width, height, and CRC-32 of the first HEADER bytes (N,3) of images of an archive. Raises RecordsError."""
    reader = archive_reader(source)

    def header(position: int) -> tuple[int, int, int]:
        item = source.items[position]
        try:
            start = reader.content(item, HEADER)
            try:
                return *_size(start), zlib.crc32(start)
            except DamagedImageError:  # a header that is longer
                return *_size(reader.content(item)), zlib.crc32(start)
        except DamagedImageError as error:
            raise _unreadable(f"{source.path}: {item.name}", str(error)) from error
        except OSError as error:
            raise _unreadable(f"{source.path}: {item.name}", error.strerror or str(error)) from error

    with ThreadPoolExecutor(THREADS) as pool:
        headers = track(pool.map(header, positions), len(positions), "reading headers", "images")
        return np.array(list(headers), dtype=np.int64)


def _size(content: bytes) -> tuple[int, int]:
    with open_image(io.BytesIO(content)) as image:
        return image.size


def _unreadable(name: str, reason: str) -> RecordsError:
    return RecordsError(f"{name} cannot be read: {reason}; leave such images out with equimod convert --on-error skip")
