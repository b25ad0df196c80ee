"""Records in one .beton file, FFCV's format, read and written here without ffcv.

    header      version, page size, number of samples, where the allocation table lies
    fields      a descriptor a field: type, name, 1,024 bytes of arguments
    metadata    an element a sample: image (mode, width, height, pointer), and the numbers
    data        images; none crosses the border of a page, which begin at multiples of the page size
    trailer     of this project, see below, and the names of the samples in their source
    table       sample, pointer and size of every image, to the end of the file

Files written by this project have the fields image, label, index, width, height (the last two of the original image)
and a trailer, to which nothing points that ffcv looks at: class names, checksums, remarks, manifest, and digests of
the names and of all that is neither image nor trailer. Its place stands in the arguments of each integer field, of
which ffcv's IntField has none; a file with one of these marks has to be whole. Any other file needs an image and an
integer for the label, as those of ffcv-imagenet have: a sample's index is then its position in the file, its original
size the stored one, the name of a class its number.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.archive import changed
from equimod.pipelines.records.file_reader import FileReader, RandomAccess, merged, read_checked
from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.names import Names
from equimod.pipelines.records.protocol import (
    RecordsError,
    StoredImage,
    damaged,
    is_possible,
    nothing,
    numbered_classes,
    pairs,
    parts,
    source_or_index,
)
from equimod.pipelines.stored import DamagedFileError, FileDigest, decode_json

FORM = ("equimod-beton", 3)
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
MAGIC = b"equimod3"
ANY_MAGIC = MAGIC[:-1]  # of other versions of this project too


@dataclass(frozen=True)
class Trailer:
    """What FFCV's format has no place for. Behind it lie the names of the samples, as `pack_names` writes them."""

    manifest: Manifest
    classes: list[str]
    crc32: NDArray[np.uint32]  # (N,) of the images as stored
    remark: NDArray[np.uint16]  # (N,) as in Records
    names: FileDigest
    head: str  # see `head_digest`

    def pack(self) -> bytes:
        """A line of JSON with digests and class names, the manifest, the columns."""
        manifest = self.manifest.to_json(FORM)
        head = {"head": self.head, "classes": self.classes, "manifest": len(manifest), "names": asdict(self.names)}
        columns = self.crc32.astype("<u4").tobytes() + self.remark.astype("<u2").tobytes()
        return json.dumps(head).encode() + b"\n" + manifest + columns

    @classmethod
    def unpack(cls, content: bytes, samples: int, name: str) -> Trailer:
        """Raises RecordsError where the trailer cannot be understood; `name` is where it lies."""
        line, _, rest = content.partition(b"\n")
        try:
            head = decode_json(line, _Head, name)
            if head.manifest != len(rest) - 6 * samples:
                raise DamagedFileError(f"{name} is damaged: its trailer has another length")
        except DamagedFileError as error:
            raise RecordsError(f"{error}; copy the file again or convert again") from error
        manifest = Manifest.parse(rest[: head.manifest], name, FORM)
        columns = rest[head.manifest :]
        crc32 = np.frombuffer(columns, "<u4", samples)
        remark = np.frombuffer(columns, "<u2", samples, offset=crc32.nbytes)
        return cls(manifest, head.classes, crc32, remark, head.names, head.head)


class _Head(msgspec.Struct):
    head: str
    classes: list[str]
    manifest: int  # bytes
    names: FileDigest


class BetonRecords:
    """Random access to the samples of a .beton file.

    Raises RecordsError where the file is no .beton, is cut short or damaged, or holds no image and label.
    """

    def __init__(self, path: Path, file: RandomAccess | None = None) -> None:
        """`file`: its content where it does not lie at `path`."""
        self.path = path
        self._file: RandomAccess = file or FileReader(path)
        if not self._file.length:
            raise RecordsError(f"{path} is empty; copy it again or convert again")
        header = self._array(HEADER, 0, 1)[0]
        if header["version"] != VERSION:
            raise RecordsError(f"{path} is no .beton file of version {VERSION}; give another or convert again")
        fields = self._array(FIELD, HEADER.itemsize, int(header["fields"]))
        metadata = self._metadata(fields, int(header["samples"]))
        numbers = _of_type(fields, INT_FIELD)
        self.fields, self.image_field = _names(fields), self._one(fields, IMAGE_FIELD, "image")
        image = metadata[self.image_field]
        self.label = metadata[self._one(fields, INT_FIELD, "label")]
        self.index = metadata["index"] if "index" in numbers else np.arange(len(metadata), dtype=np.int64)
        self.stored_size = pairs(image, "width", "height").astype(np.int32)  # products need more than 16 bits
        original = {"width", "height"} <= set(numbers)
        self.size = pairs(metadata, "width", "height") if original else self.stored_size
        self._mode, self._pointer = image["mode"], image["pointer"]
        table = int(header["table"])
        entries = self._array(ENTRY, table, max(0, self._file.length - table) // ENTRY.itemsize)
        self.length = self._lengths(entries)
        for rows in parts(len(metadata)):
            self._check(rows)
        self.raw = bool((self._mode == RAW).any())
        self._names: Names | None = None
        self.trailer = self._trailer(fields, len(metadata))
        self.manifest = self.trailer.manifest if self.trailer else None
        self.form = f".beton, fields {', '.join(self.fields)}" + "; written by another program" * (self.trailer is None)
        if self.trailer and self.trailer.head != head_digest(header, fields, metadata, entries):
            raise _damaged(self.path, "it does not have its own digest")
        zeros = nothing(len(metadata))
        self.checksum = self.trailer.crc32 if self.trailer else zeros
        self.remark = self.trailer.remark if self.trailer else zeros
        self.changed = zeros if self.trailer else zeros + (0 if file else changed(path))
        self.classes = self.trailer.classes if self.trailer else numbered_classes(path, int(self.label.max()))
        if self.trailer is None and self.label.min() < 0:
            raise RecordsError(f"{path} has labels below 0; write them as 0, 1, ... again")
        if not is_possible(self):
            raise RecordsError(f"{path} has metadata that cannot be true; copy it again or convert again")

    def _array(self, kind: np.dtype[np.void], offset: int, count: int) -> NDArray[np.void]:
        if offset + count * kind.itemsize > self._file.length:
            raise RecordsError(f"{self.path} is cut short, or no .beton file; copy it again or convert again")
        return np.frombuffer(self._file.read(offset, count * kind.itemsize), kind, count)

    def _metadata(self, fields: NDArray[np.void], samples: int) -> NDArray[np.void]:
        if unknown := sorted({int(kind) for kind in fields["type"]} - TYPES.keys()):
            raise RecordsError(f"{self.path} has a field of the unknown type {unknown[0]}; write it without that field")
        if samples == 0:
            raise RecordsError(f"{self.path} holds no samples; convert again")
        if len(set(_names(fields))) < len(fields):
            raise RecordsError(f"{self.path} has two fields of one name; copy it again or write it anew")
        types = [TYPES[int(kind)] for kind in fields["type"]]
        kind = np.dtype(list(zip(_names(fields), types, strict=True)), align=True)
        return self._array(kind, HEADER.itemsize + fields.nbytes, samples)

    def _one(self, fields: NDArray[np.void], kind: int, name: str) -> str:
        """The field called `name`, or the only one of its type."""
        names = _of_type(fields, kind)
        if name not in names and len(names) != 1:
            raise RecordsError(f"{self.path} has no field {name!r}, but {', '.join(names) or 'none of its type'}")
        return name if name in names else names[0]

    def _lengths(self, entries: NDArray[np.void]) -> NDArray[np.int64]:
        """Bytes of every image, from the allocation table."""
        if np.array_equal(entries["pointer"], self._pointer):
            return entries["size"].astype(np.int64)
        entries = entries[np.argsort(entries["pointer"])]
        place = np.searchsorted(entries["pointer"], self._pointer)
        if not len(entries) or (entries["pointer"][place.clip(max=len(entries) - 1)] != self._pointer).any():
            raise RecordsError(f"{self.path} has no entry for some images, or is cut short; copy it or convert again")
        return entries["size"][place].astype(np.int64)

    def _check(self, rows: slice) -> None:
        pointer, length, mode = self._pointer[rows], self.length[rows], self._mode[rows]
        sides = self.stored_size[rows].astype(np.int64)
        if (
            (pointer > self._file.length).any()
            or (length < 0).any()
            or (pointer.astype(np.int64) + length > self._file.length).any()
            or (length != sides.prod(axis=1) * 3)[mode == RAW].any()
            or (mode > RAW).any()
        ):
            raise RecordsError(f"{self.path} has metadata that cannot be true; copy it again or convert again")

    def _trailer(self, fields: NDArray[np.void], samples: int) -> Trailer | None:
        arguments = [argument.tobytes()[: TRAILER.itemsize] for argument in fields["arguments"]]
        if not any(argument.startswith(ANY_MAGIC) for argument in arguments):
            return None
        places = {argument for argument, kind in zip(arguments, fields["type"], strict=True) if kind == INT_FIELD}
        place = np.frombuffer(places.pop(), TRAILER, 1)[0] if len(places) == 1 else None
        if place is None or not place["magic"].startswith(ANY_MAGIC):
            raise _damaged(self.path, "its fields do not agree on who wrote it")
        if place["magic"] != MAGIC:
            raise RecordsError(f"{self.path} was written by another version of equimod; convert the source again")
        offset, size = int(place["offset"]), int(place["size"])
        content = self._file.read(offset, size)
        if zlib.crc32(content) != place["crc32"]:
            raise _damaged(self.path, "its trailer does not have its checksum")
        trailer = Trailer.unpack(content, samples, str(self.path))
        self._names = Names(str(self.path), partial(_read_names, self._file, self.path, offset + size, trailer.names))
        return trailer

    def verify_names(self) -> None:
        """Compare the names with their digest. Raises RecordsError."""
        if self._names:
            self._names.read()

    def __len__(self) -> int:
        return len(self.label)

    def read(self, position: int) -> StoredImage:
        """The JPEG file, or the pixels (H,W,3).

        Raises RecordsError where the bytes do not have their checksum.
        """
        offset, length = int(self._pointer[position]), int(self.length[position])
        if not self.trailer:
            content = self._file.read(offset, length)
        elif (checked := read_checked(self._file, offset, length, self.trailer.crc32[position])) is not None:
            content = checked
        else:
            raise damaged(self.name(position))
        if self._mode[position] == JPEG:
            return content
        width, height = self.stored_size[position].tolist()
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system load these images ahead of `read`."""
        for _, offset, length in self._requests(positions):
            self._file.will_read(offset, length)

    def wont_read(self, positions: NDArray[np.int64]) -> None:
        """Have the system forget these images."""
        for _, offset, length in self._requests(positions):
            self._file.wont_read(offset, length)

    def _requests(self, positions: NDArray[np.int64]) -> Iterator[list[int]]:
        start = self._pointer[positions].astype(np.int64)
        return merged(np.zeros_like(start), start, self.length[positions])

    def source(self, position: int) -> str:
        """The sample's path in the source; `sample INDEX` in a file that does not say.

        Raises RecordsError where the names are damaged.
        """
        return self._names.at(position) if self._names else f"sample {self.index[position]}"

    def name(self, position: int) -> str:
        """Path in the source and the file, as `n01440764/x.JPEG (train.beton)`."""
        return f"{source_or_index(self, position)} ({self.path.name})"


def _read_names(file: RandomAccess, path: Path, offset: int, digest: FileDigest) -> bytes:
    content = file.read(offset, digest.length)
    if FileDigest.of_content(content) != digest:
        raise _damaged(path, "its names do not have their digest")
    return content


def _damaged(path: Path, fault: str) -> RecordsError:
    return RecordsError(f"{path} is damaged: {fault}; copy it again or convert again")


def head_digest(
    header: np.void | NDArray[np.void], fields: NDArray[np.void], metadata: NDArray[np.void], entries: NDArray[np.void]
) -> str:
    """SHA-256, hexadecimal, of all that is neither image nor trailer, nor the trailer's place."""
    digest = hashlib.sha256(header.tobytes())
    for argument, field in zip(fields["arguments"], fields, strict=True):
        digest.update(field["type"].tobytes() + field["name"])
        digest.update(argument.tobytes()[TRAILER.itemsize if field["type"] == INT_FIELD else 0 :])
    digest.update(metadata.view(np.uint8).data)
    digest.update(entries.view(np.uint8).data)
    return digest.hexdigest()


def _names(fields: NDArray[np.void]) -> list[str]:
    return [name.decode("ascii", "replace") for name in fields["name"]]


def _of_type(fields: NDArray[np.void], kind: int) -> list[str]:
    return [name for name, found in zip(_names(fields), fields["type"], strict=True) if found == kind]
