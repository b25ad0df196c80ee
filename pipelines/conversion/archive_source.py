"""Archives as sources, read in place: tar or zip of folders of images, and webdataset shards of other programs.

Labels of folders are those of the unpacked tree, and so is the order. A webdataset sample has its label in KEY.cls, or
as "label" in KEY.json, or none; samples come in the order of the shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from equimod.pipelines.conversion.check import CheckedImage, DamagedImageError, Encoding, check_image
from equimod.pipelines.conversion.imagenet import DEVKIT, imagenet_items, is_imagenet, refuse_repeated
from equimod.pipelines.conversion.labels import number_labels
from equimod.pipelines.conversion.source import Item, Source
from equimod.pipelines.progress import Progress
from equimod.pipelines.records.archive import Member, changed, members, read, uncompressed
from equimod.pipelines.records.folder import Labels, folders_are_classes
from equimod.pipelines.records.image_names import IMAGE_EXTENSIONS, hidden_of, images_of, tell_ignored
from equimod.pipelines.records.protocol import RecordsError

_BRACES = re.compile(r"\{([^{}]*)\}")
_WEBDATASET_IMAGES = tuple(extension.removeprefix(".") for extension in IMAGE_EXTENSIONS)


@dataclass(frozen=True)
class ArchiveReader:
    """Files in archives; an item's place is the number of its archive, and offset, length and compression there."""

    paths: tuple[Path, ...]

    def content(self, item: Item, length: int | None = None) -> bytes:
        """The file, or of one that is not compressed its first `length` bytes. Raises OSError."""
        archive, offset, whole, deflated = item.place
        return read(self.paths[archive], offset, whole if deflated else min(length or whole, whole), bool(deflated))

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        try:
            content = self.content(item)
        except OSError as error:
            raise DamagedImageError(error.strerror or str(error)) from error
        return check_image(content, encoding)

    def length(self, item: Item) -> int:
        """Bytes of the file in the archive."""
        return item.place[2]

    def changed(self, item: Item) -> int:
        """When its archive was changed last, nanoseconds."""
        return changed(self.paths[item.place[0]])

    def mark(self, item: Item) -> tuple[int, ...]:
        return self.length(item), self.changed(item)


def matches(pattern: Path) -> list[Path]:
    """The files that a pattern with braces or wildcards stands for. Raises RecordsError where one is missing."""
    paths = []
    for path in (path for text in _expanded(str(pattern)) for path in _globbed(Path(text))):
        if not path.is_file():
            raise RecordsError(f"{path} does not exist; {pattern} stands for it")
        paths.append(path)
    return paths


def pattern_source(pattern: Path, paths: Sequence[Path], labels: Labels = "auto") -> Source:
    """The webdataset shards `paths`, which `pattern` stands for. Raises RecordsError."""
    return _webdataset(pattern, paths, members(paths), labels)


def archive_source(path: Path, devkit: Path | None = None, labels: Labels = "auto") -> Source:
    """The images of an archive: one of ImageNet's, a webdataset shard, or folders of images. Raises RecordsError."""
    unpacked = uncompressed(path)
    [files] = members([unpacked])
    images, ignored = images_of((file.name, file) for file in files)
    if is_imagenet(files, images, devkit):
        classes, items = imagenet_items(unpacked, files, devkit or path.parent / DEVKIT)
        return Source(path, classes, items, ArchiveReader((unpacked,)))
    if any(_is_webdataset(sample) for _, sample in _samples(files)):
        return _webdataset(path, [unpacked], [files], labels)
    if not images:
        raise RecordsError(f"{path} holds neither images nor archives of classes; give another archive or a folder")
    tell_ignored(path, ignored)
    refuse_repeated(path, [file.name for file in images])
    names = _relative([file.name for file in images])
    labelled = folders_are_classes(path, names, labels)
    found = sorted(
        (name.partition("/")[0] if labelled else "", *_parent_and_name(name), image)
        for name, image in zip(names, images, strict=True)
        if "/" in name or not labelled
    )
    classes = sorted({folder for folder, *_ in found}) if labelled else []
    label = {name: number for number, name in enumerate(classes)}
    items = [
        Item(index, f"{parent}/{name}".removeprefix("./"), label.get(folder, -1), _place(0, image))
        for index, (folder, parent, name, image) in enumerate(found)
    ]
    return Source(path, classes, items, ArchiveReader((unpacked,)))


def _webdataset(path: Path, paths: Sequence[Path], files: Sequence[list[Member]], labels: Labels) -> Source:
    with Progress("reading labels", "samples") as progress:
        found = [
            (archive, image, _label(paths[archive], sample))
            for archive, members_ in enumerate(files)
            for _, sample in progress.count(_samples(members_))
            for image in _image_of(sample)
        ]
    if not found:
        raise RecordsError(f"{path} holds no images (.{', .'.join(_WEBDATASET_IMAGES)}); give shards that do")
    texts = [None if labels == "none" else text for _, _, text in found]
    classes, numbers = number_labels(path, texts, [image.name for _, image, _ in found])
    several = len(paths) > 1
    items = [
        Item(
            index,
            f"{paths[archive].name}/{image.name}" if several else image.name,
            label,
            _place(archive, image),
        )
        for index, ((archive, image, _), label) in enumerate(zip(found, numbers, strict=True))
    ]
    return Source(path, classes, items, ArchiveReader(tuple(paths)))


def _samples(files: Iterable[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Files side by side that share a key: the path up to the first dot of the name. By their extension."""
    shown = (file for file in files if not hidden_of(file.name))
    for key, group in groupby(shown, lambda file: _split(file.name)[0]):
        yield key, {_split(file.name)[1]: file for file in group}


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _is_webdataset(sample: dict[str, Member]) -> bool:
    return bool({"cls", "json"} & sample.keys()) and bool(list(_image_of(sample)))


def _image_of(sample: dict[str, Member]) -> list[Member]:
    return [sample[extension] for extension in _WEBDATASET_IMAGES if extension in sample][:1]


def _label(path: Path, sample: dict[str, Member]) -> str | None:
    """What a sample says about its class. Raises RecordsError where it is not text."""
    member = sample.get("cls") or sample.get("json")
    if member is None:
        return None
    try:
        text = read(path, member.offset, member.length, member.deflated).decode()
        found = text.strip() if "cls" in sample else json.loads(text).get("label")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RecordsError(f"{path}: {member.name} is no label ({error}); write the shard again") from error
    return None if found is None else str(found)


def _relative(names: Sequence[str]) -> list[str]:
    """The names without the folders that all of them share."""
    shared = 0
    parts = [PurePosixPath(name).parts for name in names]
    while min(map(len, parts)) > shared + 1 and len({part[shared] for part in parts}) == 1:
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _parent_and_name(name: str) -> tuple[str, str]:
    parent, _, base = name.rpartition("/")
    return parent or ".", base


def _place(archive: int, member: Member) -> tuple[int, ...]:
    return archive, member.offset, member.length, int(member.deflated)


def _globbed(path: Path) -> list[Path]:
    """The files that wildcards in the name of a file stand for; without any, the path itself."""
    return sorted(path.parent.glob(path.name)) or [path]


def _expanded(pattern: str) -> Iterator[str]:
    """`a-{00..02}.tar` as a-00.tar, a-01.tar, a-02.tar; `{a,b}` as a and b."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    first, between, last = braces[1].partition("..")
    choices: Iterable[str] = braces[1].split(",")
    if between and first.isdecimal() and last.isdecimal():
        choices = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    for choice in choices:
        yield from _expanded(pattern[: braces.start()] + choice + pattern[braces.end() :])
