"""Records in one .beton file, FFCV's format, read and written here without ffcv.

    header      version, page size, number of samples, where the allocation table lies
    fields      a descriptor a field: type, name, 1,024 bytes of arguments
    metadata    an element a sample: image (mode, width, height, pointer), and the numbers
    data        images; none crosses the border of a page, which begin at multiples of the page size
    trailer     of this project, see below
    table       sample, pointer and size of every image, to the end of the file

Files written by this project have the fields image, label, index, width, height (the last two of the original image)
and a trailer, to which nothing points that ffcv looks at: class names, checksums, sources, manifest. Its place stands
in the arguments of the field `index`, of which ffcv's IntField has none. Any other file needs an image and an integer
for the label, as those of ffcv-imagenet have: a sample's index is then its position in the file, its original size the
stored one, the name of a class its number.
"""

from __future__ import annotations

import json
import mmap
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.protocol import RecordsError, StoredImage, content_digest, damaged
from equimod.pipelines.records.read_ahead import read_ahead

FORM = ("equimod-beton", 1)
SUFFIX = ".beton"
VERSION = 2  # of FFCV's format
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
ENTRY = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
BYTES = np.dtype([("pointer", "<u8"), ("size", "<u8")])
POINTER = np.dtype("<u8")
INT_FIELD, IMAGE_FIELD = 1, 2
TYPES = {0: np.dtype("<f8"), INT_FIELD: np.dtype("<i8"), IMAGE_FIELD: IMAGE, 3: BYTES, 4: POINTER, 5: BYTES, 6: POINTER}
JPEG, RAW = 0, 1  # modes of an image
TRAILER = np.dtype([("magic", "S8"), ("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4")])
MAGIC = b"equimod1"


@dataclass(frozen=True)
class Trailer:
    """What FFCV's format has no place for."""

    manifest: Manifest
    classes: list[str]
    crc32: NDArray[np.uint32]  # (N,) of the images as stored
    sources: bytes  # a line of JSON a sample: its path in the source
    head_crc32: int  # see `head_checksum`

    def pack(self) -> bytes:
        """A line of JSON with the manifest and the class names, the checksums, the sources."""
        head = {
            "manifest": json.loads(self.manifest.to_json(FORM)),
            "classes": self.classes,
            "head_crc32": self.head_crc32,
        }
        return json.dumps(head).encode() + b"\n" + self.crc32.astype("<u4").tobytes() + self.sources

    @classmethod
    def unpack(cls, content: bytes, samples: int, name: str) -> Trailer:
        """Raises RecordsError where the trailer cannot be understood; `name` is where it lies."""
        head, _, rest = content.partition(b"\n")
        try:
            fields = json.loads(head)
            manifest = Manifest.parse(json.dumps(fields["manifest"]), name, FORM)
            crc32, sources = np.frombuffer(rest, "<u4", samples), rest[4 * samples :]
            return cls(manifest, fields["classes"], crc32, sources, fields["head_crc32"])
        except (ValueError, KeyError, TypeError) as error:
            raise RecordsError(f"{name} has a damaged trailer; copy the file again or convert again") from error


class BetonRecords:
    """Random access to the samples of a .beton file, through one memory map.

    Raises RecordsError where the file is no .beton, is cut short or damaged, or holds no image and label.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _mapped(path)
        header = self._array(HEADER, 0, 1)[0]
        if header["version"] != VERSION:
            raise RecordsError(f"{path} is no .beton file of version {VERSION}; give another or convert again")
        fields = self._array(FIELD, HEADER.itemsize, int(header["fields"]))
        metadata = self._metadata(fields, int(header["samples"]))
        numbers = {name: metadata[name].astype(np.int64) for name in _of_type(fields, INT_FIELD)}
        self.fields, self.image_field = _names(fields), self._one(fields, IMAGE_FIELD, "image")
        image = metadata[self.image_field]
        self.label = numbers[self._one(fields, INT_FIELD, "label")]
        self.index = numbers.get("index", np.arange(len(metadata), dtype=np.int64))
        self.stored_size = np.stack([image["width"], image["height"]], axis=1).astype(np.int32)
        original = {"width", "height"} <= numbers.keys()
        self.size = (
            np.stack([numbers["width"], numbers["height"]], axis=1).astype(np.int32) if original else self.stored_size
        )
        self._mode, self._pointer = image["mode"], image["pointer"]
        self.length = self._lengths(int(header["table"]))
        self._check()
        self.raw = bool((self._mode == RAW).any())
        self.trailer = self._trailer(fields)
        self.manifest = self.trailer.manifest if self.trailer else None
        self.form = f".beton, fields {', '.join(self.fields)}" + "; written by another program" * (self.trailer is None)
        if self.trailer and self.trailer.head_crc32 != head_checksum(fields, metadata):
            raise RecordsError(f"{path} has damaged metadata; copy the file again or convert again")
        self.classes = self.trailer.classes if self.trailer else [str(n) for n in range(int(self.label.max()) + 1)]
        if self.classes and self.label.min() < 0:
            raise RecordsError(f"{path} has labels below 0; write them as 0, 1, ... again")

    def _array(self, kind: np.dtype[np.void], offset: int, count: int) -> NDArray[np.void]:
        if offset + count * kind.itemsize > len(self._map):
            raise RecordsError(f"{self.path} is cut short, or no .beton file; copy it again or convert again")
        return np.frombuffer(self._map, kind, count, offset)

    def _metadata(self, fields: NDArray[np.void], samples: int) -> NDArray[np.void]:
        if unknown := sorted({int(kind) for kind in fields["type"]} - TYPES.keys()):
            raise RecordsError(f"{self.path} has a field of the unknown type {unknown[0]}; write it without that field")
        if samples == 0:
            raise RecordsError(f"{self.path} holds no samples; convert again")
        types = [TYPES[int(kind)] for kind in fields["type"]]
        kind = np.dtype(list(zip(_names(fields), types, strict=True)), align=True)
        return self._array(kind, HEADER.itemsize + fields.nbytes, samples)

    def _one(self, fields: NDArray[np.void], kind: int, name: str) -> str:
        """The field called `name`, or the only one of its type."""
        names = _of_type(fields, kind)
        if name not in names and len(names) != 1:
            raise RecordsError(f"{self.path} has no field {name!r}, but {', '.join(names) or 'none of its type'}")
        return name if name in names else names[0]

    def _lengths(self, table: int) -> NDArray[np.int64]:
        """Bytes of every image, from the allocation table at byte `table`."""
        entries = self._array(ENTRY, table, max(0, len(self._map) - table) // ENTRY.itemsize)
        entries = entries[np.argsort(entries["pointer"])]
        place = np.searchsorted(entries["pointer"], self._pointer)
        if not len(entries) or (entries["pointer"][place.clip(max=len(entries) - 1)] != self._pointer).any():
            raise RecordsError(f"{self.path} has no entry for some images, or is cut short; copy it or convert again")
        length: NDArray[np.int64] = entries["size"][place].astype(np.int64)
        return length

    def _check(self) -> None:
        sides = self.stored_size.astype(np.int64)
        if (
            (self._pointer.astype(np.int64) + self.length > len(self._map)).any()
            or (self.length != sides.prod(axis=1) * 3)[self._mode == RAW].any()
            or (self._mode > RAW).any()
            or (np.diff(self.index) <= 0).any()
            or (self.label < -1).any()
        ):
            raise RecordsError(f"{self.path} has metadata that cannot be true; copy it again or convert again")

    def _trailer(self, fields: NDArray[np.void]) -> Trailer | None:
        arguments = fields["arguments"][self.fields.index("index")].tobytes() if "index" in self.fields else b""
        place = np.frombuffer(arguments.ljust(TRAILER.itemsize, b"\0"), TRAILER, 1)[0]
        if place["magic"] != MAGIC:
            return None
        content = self._map[int(place["offset"]) : int(place["offset"]) + int(place["size"])]
        if zlib.crc32(content) != place["crc32"]:
            raise RecordsError(f"{self.path} has a damaged trailer; copy the file again or convert again")
        return Trailer.unpack(content, len(self.label), str(self.path))

    def __len__(self) -> int:
        return len(self.label)

    def read(self, position: int) -> StoredImage:
        """The JPEG file, or the pixels (H,W,3): a view into the mapped file.

        Raises RecordsError where the bytes do not have their checksum.
        """
        start = int(self._pointer[position])
        content = memoryview(self._map)[start : start + int(self.length[position])]
        if self.trailer and zlib.crc32(content) != self.trailer.crc32[position]:
            raise damaged(self.name(position))
        if self._mode[position] == JPEG:
            return content
        width, height = self.stored_size[position].tolist()
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system load these images ahead of `read`."""
        for start, length in zip(self._pointer[positions].tolist(), self.length[positions].tolist(), strict=True):
            read_ahead(self._map, start, length)

    @cached_property
    def _sources(self) -> list[bytes]:
        return self.trailer.sources.split(b"\n") if self.trailer else []

    def source(self, position: int) -> str:
        """The sample's path in the source; `sample INDEX` in a file that does not say."""
        return str(json.loads(self._sources[position])) if self.trailer else f"sample {self.index[position]}"

    def name(self, position: int) -> str:
        """Path in the source and the file, as `n01440764/x.JPEG (train.beton)`."""
        return f"{self.source(position)} ({self.path.name})"

    def fingerprint(self) -> str:
        """Hexadecimal digest, equal for equal samples in the same order."""
        return content_digest(self.classes, self.index, self.label, self.size, self.length)


def head_checksum(fields: NDArray[np.void], metadata: NDArray[np.void]) -> int:
    """CRC-32 of what is neither image nor trailer: types and names of the fields, the metadata."""
    return zlib.crc32(fields["type"].tobytes() + fields["name"].tobytes() + metadata.tobytes())


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise RecordsError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from error
    except ValueError as error:
        raise RecordsError(f"{path} is empty; copy it again or convert again") from error


def _names(fields: NDArray[np.void]) -> list[str]:
    return [name.decode("ascii", "replace") for name in fields["name"]]


def _of_type(fields: NDArray[np.void], kind: int) -> list[str]:
    return [name for name, found in zip(_names(fields), fields["type"], strict=True) if found == kind]
