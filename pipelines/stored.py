"""Small files of our own: JSON of a known form, and lists of digests that notice a change of a file or of the list."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from equimod.pipelines.errors import EquimodError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DIGESTS = "digests.json"
_END = "\n}"
_NO_FILE = "it is no file, but a pipe, a socket or a device"
T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")


class DamagedFileError(EquimodError):
    """A file of our own that is not as it was written: the message names the file and the fault, and no remedy."""


def decode_json(content: bytes, kind: type[T], name: str) -> T:
    """JSON as a `kind`: a dataclass, or another type that msgspec knows; keys that it does not have are skipped.

    Raises DamagedFileError where it is none; `name` is where it lies.
    """
    try:
        # Not msgspec's own reader, which takes no text with the bytes of names that are not UTF-8.
        return msgspec.convert(json.loads(content.decode(), parse_constant=_refuse), type=kind)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{name} is damaged ({error})") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read. Raises OSError as `regular_descriptor`."""
    return os.fdopen(regular_descriptor(path), "rb")


def regular_descriptor(path: Path) -> int:
    """A descriptor of a file, open to read. Raises OSError for a pipe, a socket or a device, which might never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, _NO_FILE, str(path)) if error.errno == errno.ENXIO else error from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _NO_FILE, str(path))
    return descriptor


def read_bytes(path: Path) -> bytes:
    """The content of a small file. Raises DamagedFileError where it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path, kind: type[T]) -> T:
    """A file of JSON as a `kind`, see `decode_json`. Raises DamagedFileError where it cannot be read or is none."""
    return decode_json(read_bytes(path), kind, str(path))


def seal(fields: dict[str, Any]) -> bytes:
    """JSON text of `fields` with a digest of itself: as it was if the fields that are read from it give it again."""
    text = json.dumps(fields, indent=1)
    return f'{text.removesuffix(_END)},\n "sha256": "{_sha256(text.encode())}"{_END}'.encode()


def decode_sealed(content: bytes, kind: type[D], name: str) -> D:
    """A text of `seal` as a `kind`, the dataclass whose fields it holds; `name` is where it lies.

    Raises DamagedFileError where it is not as it was written.
    """
    found = decode_json(content, kind, name)
    if seal(asdict(found)) != content:
        raise unsealed(name)
    return found


def unsealed(name: str) -> DamagedFileError:
    """The error about a text of `seal` that is not as it was."""
    return DamagedFileError(f"{name} is damaged: it does not have its own digest")


@dataclass(frozen=True)
class FileDigest:
    """What the content of a file is known by."""

    length: int  # bytes
    sha256: str  # hexadecimal

    @classmethod
    def of_content(cls, content: bytes) -> FileDigest:
        """The digest of a file of this content."""
        return cls(len(content), _sha256(content))

    @classmethod
    def of(cls, path: Path) -> FileDigest:
        """The digest of a file. Raises OSError where it cannot be read."""
        with open_regular(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), sha256)


@dataclass(frozen=True)
class Digests:
    """The digests of files in a folder, by name."""

    files: dict[str, FileDigest]

    @classmethod
    def of(cls, folder: Path, names: Iterable[str]) -> Digests:
        """The digests of the files `names` of `folder`. Raises OSError where one cannot be read."""
        return cls({name: FileDigest.of(folder / name) for name in sorted(names)})

    def pack(self) -> bytes:
        """JSON text with a digest of the list itself."""
        return seal(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Digests:
        """The list at `path`. Raises DamagedFileError where it cannot be read or is not as it was."""
        return decode_sealed(read_bytes(path), cls, str(path))

    def read_file(self, folder: Path, name: str) -> bytes:
        """The content of a file of `folder`. Raises DamagedFileError where it cannot be read or is not as listed."""
        content = read_bytes(folder / name)
        if FileDigest.of_content(content) != self.files.get(name):
            raise _changed(folder / name)
        return content

    def check(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Compare the files `names` of `folder`, or all, with the list. Raises DamagedFileError for the first that
        differs or is missing, from the folder or from the list."""
        for name in self.files if names is None else names:
            path = folder / name
            try:
                found = FileDigest.of(path)
            except OSError as error:
                raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
            if found != self.files.get(name):
                raise _changed(path)


def _changed(path: Path) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: it does not have its digest")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
