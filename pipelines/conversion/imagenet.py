"""The archives of ImageNet (ILSVRC 2012) as they are downloaded, read in place.

Samples come in the order, with the names and the labels of the ImageFolder tree that the archives are usually unpacked
into: one folder a class, called by its WordNet ID.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from equimod.pipelines.conversion.source import Item
from equimod.pipelines.progress import track
from equimod.pipelines.records.archive import BoundedTarInfo, Member, of_tar, opened_archive
from equimod.pipelines.records.image_names import hidden_of, images_of
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.stored import open_regular

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
VALIDATION = "ILSVRC2012_val_"
LARGEST_DEVKIT = 16 * 2**20  # bytes that it unpacks to, several times those of the real one
GROUND_TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"


def is_imagenet(files: Sequence[Member], images: Sequence[Member], devkit: Path | None) -> bool:
    """Whether an archive is one of ImageNet's, by its files and those of them that are images: archives of classes, or
    validation images, which lie in no folder and are called so, or are said to be by a `devkit`.
    """
    if not images:
        return any(file.name.endswith(".tar") for file in files)
    flat = not any("/" in image.name for image in images)
    return flat and (devkit is not None or all(image.name.startswith(VALIDATION) for image in images))


def refuse_repeated(path: Path, names: Sequence[str]) -> None:
    """Raise RecordsError where a name in the archive `path` comes twice."""
    if repeated := [name for name, number in Counter(names).items() if number > 1]:
        raise RecordsError(
            f"{path} holds {repeated[0]} more than once; unpack it, which keeps the last one, or write it anew"
        )


def imagenet_items(path: Path, files: Sequence[Member], devkit: Path) -> tuple[list[str], list[Item]]:
    """Classes and items of the training images of ILSVRC2012_img_train.tar, or of the validation images of
    ILSVRC2012_img_val.tar, from the members of the archive.

    The labels of the latter come from the archive `devkit`.
    Raises RecordsError where an archive is damaged, cut short, missing or another one.
    """
    archives = [file for file in files if file.name.endswith(".tar") and not hidden_of(file.name)]
    refuse_repeated(path, [PurePosixPath(archive.name).name for archive in archives])
    with opened_archive(path) as file:
        shown = track(archives, len(archives), "listing", "classes")
        found = {PurePosixPath(a.name).stem: list(of_tar(file, a.offset, a.length)) for a in shown}
    if not found:
        found = _by_class(images_of((file.name, file) for file in files)[0], path, devkit)
    named = sorted(
        (f"{wnid}/{PurePosixPath(image.name).name}", wnid, image)
        for wnid in found
        for image in images_of((image.name, image) for image in found[wnid])[0]
    )
    refuse_repeated(path, [name for name, *_ in named])
    if not named:
        raise RecordsError(f"{path} holds no images; give ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar")
    label = {wnid: number for number, wnid in enumerate(sorted(found))}
    items = [
        Item(index, name, label[wnid], (0, image.offset, image.length, 0))
        for index, (name, wnid, image) in enumerate(named)
    ]
    return sorted(found), items


def _by_class(images: list[Member], path: Path, devkit: Path) -> dict[str, list[Member]]:
    """Validation images by WordNet ID: the number in a name is the line of the ground truth."""
    if not images:
        return {}
    wnids, truth = _read_devkit(devkit)
    found: dict[str, list[Member]] = {wnid: [] for wnid in wnids.values()}
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
        with open_regular(path) as file, tarfile.open(fileobj=file, tarinfo=BoundedTarInfo) as archive:
            content, left = {}, LARGEST_DEVKIT
            for member in archive:
                left -= member.size
                if left < 0:
                    raise ValueError(f"it unpacks to more than {LARGEST_DEVKIT:,} bytes")
                for name in (GROUND_TRUTH, META):
                    if member.name.endswith(name) and (part := archive.extractfile(member)):
                        content[name] = part.read()
        truth = [int(line) for line in content[GROUND_TRUTH].split()]
        synsets = loadmat(io.BytesIO(content[META]), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if row["num_children"] == 0}
        if not set(truth) <= wnids.keys():
            raise KeyError(f"an ID without a WNID in {META}")
    except FileNotFoundError as error:
        raise RecordsError(f"{path} does not exist; give ImageNet's devkit with --devkit {DEVKIT}") from error
    except Exception as error:  # gzip, tarfile and scipy raise exceptions of many kinds
        raise RecordsError(
            f"{path} is not ImageNet's devkit, or a damaged copy ({error}); download it again"
        ) from error
    return wnids, truth
