"""The archives of ImageNet (ILSVRC 2012) as they are downloaded, read in place.

Samples come in the order, with the names and the labels of the ImageFolder tree that the archives are usually unpacked
into: one folder a class, called by its WordNet ID.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from equimod.pipelines.conversion.check import CheckedImage, DamagedImageError, check_image
from equimod.pipelines.conversion.source import Item, Source
from equimod.pipelines.records.folder import IMAGE_EXTENSIONS
from equimod.pipelines.records.protocol import RecordsError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
GROUND_TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"


@dataclass(frozen=True)
class ArchiveReader:
    """Files inside an uncompressed tar archive; an item's place is its offset and length in bytes."""

    path: Path

    def load(self, item: Item) -> CheckedImage:
        offset, length = item.place
        try:
            content = os.pread(_descriptor(self.path), length, offset)
        except OSError as error:
            raise DamagedImageError(error.strerror or str(error)) from error
        if len(content) < length:
            raise DamagedImageError("the archive ends before the image does")
        return check_image(content)

    def length(self, item: Item) -> int:
        return item.place[1]


@cache
def _descriptor(path: Path) -> int:
    """A file descriptor of this process, open until it ends."""
    return os.open(path, os.O_RDONLY)


def imagenet_source(path: Path, devkit: Path | None = None) -> Source:
    """The training images of ILSVRC2012_img_train.tar, or the validation images of ILSVRC2012_img_val.tar.

    The labels of the latter come from `devkit`, by default the archive of that name in the same folder.
    Raises RecordsError where an archive is damaged, cut short, missing or another one.
    """
    try:
        with path.open("rb") as file:
            members = list(_members(file, 0, os.fstat(file.fileno()).st_size))
            archives = [member for member in members if member.name.endswith(".tar")]
            found = {PurePosixPath(name).stem: list(_members(file, at, length)) for name, at, length in archives}
    except OSError as error:
        raise RecordsError(f"{path} cannot be read: {error.strerror or error}; check the path") from error
    except tarfile.TarError as error:
        raise RecordsError(f"{path} is no tar archive, or a damaged one ({error}); download it again") from error
    if not found:
        found = _by_class([member for member in members if _is_image(member)], path, devkit)
    named = sorted((f"{wnid}/{image.name}", wnid, image) for wnid in found for image in found[wnid] if _is_image(image))
    if not named:
        raise RecordsError(
            f"{path} holds neither archives of classes nor images; give ILSVRC2012_img_train.tar, "
            "ILSVRC2012_img_val.tar, records or a folder of images"
        )
    label = {wnid: number for number, wnid in enumerate(sorted(found))}
    items = [
        Item(index, name, label[wnid], (image.offset, image.length)) for index, (name, wnid, image) in enumerate(named)
    ]
    return Source(path, sorted(found), items, ArchiveReader(path))


class _Member(NamedTuple):
    name: str  # without folders
    offset: int  # of the content, bytes
    length: int


def _members(file: BinaryIO, start: int, length: int) -> Iterator[_Member]:
    """The files in the tar archive that lies in `file` at byte `start`. Raises TarError where it is cut or damaged."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.offset_data + member.size > start + length:
                raise tarfile.ReadError(f"{member.name} goes on after the end of the archive")
            if member.isfile():
                yield _Member(PurePosixPath(member.name).name, member.offset_data, member.size)
        # tarfile takes a damaged or missing header for the end; the true one is a block of zeros.
        file.seek(archive.offset)
        if archive.offset >= start + length or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no file and no end of the archive at byte {archive.offset:,}")


def _is_image(member: _Member) -> bool:
    return member.name.lower().endswith(IMAGE_EXTENSIONS)


def _by_class(images: list[_Member], path: Path, devkit: Path | None) -> dict[str, list[_Member]]:
    """Validation images by WordNet ID: the number in a name is the line of the ground truth."""
    if not images:
        return {}
    wnids, truth = _read_devkit(devkit or path.parent / DEVKIT)
    found: dict[str, list[_Member]] = {wnid: [] for wnid in wnids.values()}
    for image in images:
        number = PurePosixPath(image.name).stem.rpartition("_")[2]
        if not number.isdecimal() or not 1 <= int(number) <= len(truth):
            raise RecordsError(f"{path} holds {image.name}, which the devkit's ground truth does not number")
        found[wnids[truth[int(number) - 1]]].append(image)
    return found


def _read_devkit(path: Path) -> tuple[dict[int, str], list[int]]:
    """WordNet ID by ILSVRC2012 ID, and the ILSVRC2012 IDs of the validation images in order."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise RecordsError("ImageNet's devkit is read with scipy; pip install 'equimod[imagenet]'") from error
    try:
        with tarfile.open(path, "r:*") as archive:
            content = {}
            for member in archive:
                for name in (GROUND_TRUTH, META):
                    if member.name.endswith(name) and (file := archive.extractfile(member)):
                        content[name] = file.read()
        truth = [int(line) for line in content[GROUND_TRUTH].split()]
        synsets = loadmat(io.BytesIO(content[META]), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if row["num_children"] == 0}
        if not set(truth) <= wnids.keys():
            raise KeyError(f"an ID without a WNID in {META}")
    except FileNotFoundError as error:
        raise RecordsError(f"{path} does not exist; give ImageNet's devkit with --devkit {DEVKIT}") from error
    except (OSError, tarfile.TarError, KeyError, ValueError, TypeError, EOFError, zlib.error) as error:
        raise RecordsError(
            f"{path} is not ImageNet's devkit, or a damaged copy ({error}); download it again"
        ) from error
    return wnids, truth
