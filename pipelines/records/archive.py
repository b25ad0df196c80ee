"""Files in archives that can be read anywhere: tar, once it is unpacked where it is compressed, and zip."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from equimod.pipelines.progress import Progress, reading, say
from equimod.pipelines.records.header_cache import Listed, read_listing
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.stored import open_regular, regular_descriptor

_LOCAL_HEADER = struct.Struct("<26x2H")  # in front of a file in a zip; ends with the lengths of its name and of more
COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ\x00": lzma}
"""Modules that open a compressed file, by its first bytes."""
LARGEST_FILE = 2**29
"""Bytes that a file in an archive may unpack to."""
LONGEST_NAME = 2**20  # bytes, of a member with its other properties
_EXTENDED = {b"L", b"K", b"x", b"g", b"X"}  # types of members that describe the next one
_PATTERN = re.compile(r"[{*?\[]")


def is_pattern(path: Path) -> bool:
    """Whether a path stands for several, as train-{0000..0146}.tar and train-*.tar do."""
    return bool(_PATTERN.search(str(path))) and not path.exists()


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive."""

    name: str  # with its folders, parted by "/"
    offset: int  # of its content, bytes
    length: int  # in the archive
    deflated: bool = False


def members(paths: Sequence[Path]) -> list[list[Member]]:
    """The files in each archive, in its order. Raises RecordsError where one is none, compressed, or damaged."""
    with Progress("listing", "files") as progress:
        return [list(progress.count(_members_of(path))) for path in paths]


def _members_of(path: Path) -> Iterator[Member]:
    def listed() -> Iterator[Listed]:
        for member in _members(path):
            yield member.name, (member.offset, member.length, member.deflated)

    for name, (offset, length, deflated) in read_listing(path, listed):
        yield Member(name, offset, length, bool(deflated))


def _members(path: Path) -> Iterator[Member]:
    with opened_archive(path) as file:
        if zipfile.is_zipfile(file):
            yield from _of_zip(file)
        else:
            yield from of_tar(file, 0, os.fstat(file.fileno()).st_size)


@contextmanager
def opened_archive(path: Path) -> Iterator[BinaryIO]:
    """An archive, open to list what it holds; whatever that raises inside, as RecordsError."""
    try:
        with open_regular(path) as file:
            yield file
    except RecordsError:
        raise
    except OSError as error:
        raise RecordsError(f"{path} cannot be read: {error.strerror or error}; check the path") from error
    except Exception as error:  # zipfile and tarfile raise exceptions of many kinds
        raise RecordsError(
            f"{path} is no tar or zip archive, a compressed shard, or damaged ({error}); unpack it, or download it "
            "again"
        ) from error


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed as a whole. RecordsError where it cannot be read."""
    try:
        return _compression(path) is not None
    except OSError as error:
        raise RecordsError(f"{path} cannot be read: {error.strerror or error}; check the path") from error


def _compression(path: Path) -> Any:
    """The module that opens a file which is compressed as a whole, or None."""
    with open_regular(path) as file:
        start = file.read(max(map(len, COMPRESSIONS)))
    return next((module for magic, module in COMPRESSIONS.items() if start.startswith(magic)), None)


def uncompressed(path: Path) -> Path:
    """The archive itself, or where a compressed tar is unpacked to: a file without a name in the system's folder for
    temporary ones, open to this process and its children and gone with this process. Raises RecordsError.
    """
    try:
        module = _compression(path)
        if module is None:
            return path
        say(f"unpacking {path} into {tempfile.gettempdir()}")
        with open_regular(path) as file, tempfile.TemporaryFile() as unpacked:
            with reading(file, path.stat().st_size, "unpacking") as shown, module.open(shown) as packed:
                shutil.copyfileobj(packed, unpacked, 2**20)
            unpacked.flush()
            os.utime(unpacked.fileno(), ns=(path.stat().st_mtime_ns,) * 2)
            return Path(f"/proc/{os.getpid()}/fd/{os.dup(unpacked.fileno())}")
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise RecordsError(f"{path} is damaged ({error}); download it again") from error
    except OSError as error:
        raise RecordsError(
            f"{path} cannot be unpacked into {tempfile.gettempdir()}: {error.strerror or error}; check the path, or "
            "set TMPDIR to a folder with room for it"
        ) from error


class BoundedTarInfo(tarfile.TarInfo):
    """A member of an archive, whose name is not as long as memory is."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _EXTENDED and self.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def of_tar(file: BinaryIO, start: int, length: int) -> Iterator[Member]:
    """The files in the tar archive that lies in `file` at byte `start`. Raises TarError where it is cut or damaged."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedTarInfo) as archive:
        for member in archive:
            if member.offset_data + member.size > start + length:
                raise tarfile.ReadError(f"{member.name} goes on after the end of the archive")
            if member.isfile():
                yield Member(member.name.removeprefix("./"), member.offset_data, member.size)
        # tarfile takes a damaged or missing header for the end; the true one is a block of zeros.
        file.seek(archive.offset)
        if archive.offset >= start + length or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no file and no end of the archive at byte {archive.offset:,}")


def _of_zip(file: BinaryIO) -> Iterator[Member]:
    length = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{entry.filename} is encrypted, or compressed in an unusual way")
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER.size)
            offset = entry.header_offset + len(header) + sum(_LOCAL_HEADER.unpack(header))
            if offset + entry.compress_size > length:
                raise zipfile.BadZipFile(f"{entry.filename} goes on after the end of the archive")
            yield Member(entry.filename, offset, entry.compress_size, entry.compress_type == zipfile.ZIP_DEFLATED)


def read(path: Path, offset: int, length: int, deflated: bool = False) -> bytes:
    """The content of a file in an archive. Raises OSError where it is not there or damaged."""
    content = os.pread(_descriptor(path), length, offset)
    if len(content) < length:
        raise OSError("the archive ends before the file does")
    try:
        return _inflated(content) if deflated else content
    except zlib.error as error:
        raise OSError(f"damaged in the archive ({error})") from error


def changed(path: Path) -> int:
    """When an archive was changed last, in nanoseconds; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _inflated(content: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(content, LARGEST_FILE)
    if not stream.eof:
        raise OSError(f"it is cut short in the archive, or longer than {LARGEST_FILE:,} bytes")
    return inflated


@cache
def _descriptor(path: Path) -> int:
    """A file descriptor of this process, open until it ends."""
    return regular_descriptor(path)
