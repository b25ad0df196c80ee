"""Archives as sources are what the unpacked tree would be, and shards of others keep their order and labels."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from commands import call
from fake_archives import add

from equimod.pipelines.conversion import Source, open_source
from equimod.pipelines.conversion.cifar import cifar10_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.labels import number_labels
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import Records, RecordsError, open_records
from equimod.pipelines.records.protocol import fingerprint
from equimod.tools.convert_imagenet import main as convert_command


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return path


def _stored(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _deflated(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("empty")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _compressed(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return path


COMPRESSED = ("tar.gz", "tar.bz2", "tar.xz")
FORMS = {"tar": _tar, "stored.zip": _stored, "deflated.zip": _deflated, **dict.fromkeys(COMPRESSED, _compressed)}


@pytest.fixture(scope="module")
def images(image_tree: Path) -> dict[str, bytes]:
    """The files of `image_tree` by their path below it, in no particular order."""
    paths = sorted(image_tree.rglob("*.jpg"), reverse=True)
    return {path.relative_to(image_tree).as_posix(): path.read_bytes() for path in paths}


def _converted(source: Source, tmp_path: Path) -> Records:
    convert(source, tmp_path / "records", ConversionSettings(workers=1))
    return open_records(tmp_path / "records")


@pytest.mark.parametrize("top", ["", "./", "data/train/"])
@pytest.mark.parametrize("form", FORMS)
def test_an_archive_of_a_tree_is_the_tree(
    form: str, top: str, images: dict[str, bytes], image_tree: Path, tmp_path: Path
) -> None:
    files = {f"{top}{name}": content for name, content in images.items()} | {f"{top}readme.txt": b"beside"}
    source = open_source(FORMS[form](tmp_path / f"tree.{form}", files))
    expected = open_source(image_tree)
    assert source.classes == expected.classes
    assert [(item.name, item.label) for item in source.items] == [(i.name, i.label) for i in expected.items]
    assert fingerprint(_converted(source, tmp_path)).table == fingerprint(open_records(image_tree)).table


@pytest.mark.parametrize("form", COMPRESSED)
def test_worker_processes_read_what_was_unpacked_and_no_file_stays(
    form: str, images: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    source = open_source(_compressed(tmp_path / f"tree.{form}", images))
    assert list(scratch.iterdir()) == []
    convert(source, tmp_path / "records", ConversionSettings(workers=2, shard_size=9))
    records = open_records(tmp_path / "records")
    assert [bytes(records.read(row)) for row in range(24)] == [images[records.source(row)] for row in range(24)]


def test_folders_are_the_classes_whatever_lies_beside_the_archive(images: dict[str, bytes], tmp_path: Path) -> None:
    """A devkit of ImageNet beside it, and names that end in numbers, give no labels of validation images."""
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"anything")
    source = open_source(_tar(tmp_path / "train.tar", {f"a/n01_{k}.JPEG": c for k, c in enumerate(images.values())}))
    assert source.classes == []  # one folder for all
    files = {f"n0{k % 2}/n0{k % 2}_{k}.JPEG": content for k, content in enumerate(images.values())}
    assert open_source(_tar(tmp_path / "two.tar", files)).classes == ["n00", "n01"]


def test_an_archive_without_folders_has_no_labels(images: dict[str, bytes], tmp_path: Path) -> None:
    files = {f"{number:02d}.jpg": content for number, content in enumerate(images.values())}
    records = _converted(open_source(_tar(tmp_path / "flat.tar", files)), tmp_path)
    assert (len(records), records.classes) == (24, [])


def test_folders_of_several_levels_are_asked_about(images: dict[str, bytes], tmp_path: Path) -> None:
    files = {f"{'a' if k % 2 else 'b/c'}/{k:02d}.jpg": content for k, content in enumerate(images.values())}
    path = _tar(tmp_path / "deep.tar", files)
    with pytest.raises(RecordsError, match=r"images in folders of folders: give --labels folder .* --labels none"):
        open_source(path)
    assert open_source(path, labels="folder").classes == ["a", "b"]
    flat = _tar(tmp_path / "flat.tar", {Path(name).name: content for name, content in files.items()})
    with pytest.raises(RecordsError, match="holds no folders that could be classes; leave --labels out"):
        open_source(flat, labels="folder")
    assert open_source(path, labels="none").classes == []


def _shards(folder: Path, images: dict[str, bytes], label: Callable[[int, str], dict[str, object]]) -> list[str]:
    """Two webdataset shards by webdataset itself, of 12 images each; the keys in order."""
    keys = []
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"train-{shard:04d}.tar")) as writer:
            for number, (name, content) in list(enumerate(images.items()))[shard::2]:
                keys.append(f"sample{number:05d}")
                writer.write({"__key__": keys[-1], "jpg": content, **label(number, name)})
    return keys


@pytest.mark.parametrize(
    ("label", "classes", "labels"),
    [
        (lambda k, name: {"cls": k % 3}, ["0", "1", "2"], lambda k: k % 3),
        (lambda k, name: {"json": {"label": k % 2, "width": 3}}, ["0", "1"], lambda k: k % 2),
        (lambda k, name: {"cls": k % 3, "json": {"label": 9}}, ["0", "1", "2"], lambda k: k % 3),
        (lambda k, name: {"txt": "a caption"}, [], lambda k: -1),
        (lambda k, name: {"json": {"caption": "a cat"}}, [], lambda k: -1),
        (lambda k, name: {"json": {"label": "cat" if k % 2 else "ape"}}, ["ape", "cat"], lambda k: k % 2),
    ],
    ids=["cls", "json", "both", "text", "caption", "names"],
)
@pytest.mark.parametrize("pattern", ["train-{0000..0001}.tar", "train-*.tar", "{train-0000,train-0001}.tar"])
def test_shards_of_others_keep_their_order_and_labels(
    pattern: str,
    label: Callable[[int, str], dict[str, object]],
    classes: list[str],
    labels: Callable[[int], int],
    images: dict[str, bytes],
    tmp_path: Path,
) -> None:
    keys = _shards(tmp_path, images, label)
    source = open_source(tmp_path / pattern)
    assert source.classes == classes
    assert [Path(item.name).stem for item in source.items] == keys
    assert [item.label for item in source.items] == [labels(int(key.removeprefix("sample"))) for key in keys]
    assert open_source(tmp_path / pattern, labels="none").classes == []
    records = _converted(source, tmp_path)
    assert bytes(records.read(0)) == images[list(images)[int(keys[0].removeprefix("sample"))]]


def test_one_shard_is_known_by_what_is_beside_its_images(images: dict[str, bytes], tmp_path: Path) -> None:
    _shards(tmp_path, images, lambda k, name: {"cls": k % 3})
    assert open_source(tmp_path / "train-0001.tar").classes == ["0", "1", "2"]


def test_shards_as_ours_are_read_as_well(image_tree: Path, tmp_path: Path) -> None:
    """Their KEY.json has more in it, and their index lies beside them."""
    convert(open_source(image_tree), tmp_path / "ours", ConversionSettings(workers=1, shard_size=8))
    source = open_source(tmp_path / "ours" / "shard-*.tar")
    assert [item.label for item in source.items] == open_records(image_tree).label.tolist()


def test_the_command_takes_a_pattern(images: dict[str, bytes], tmp_path: Path) -> None:
    _shards(tmp_path, images, lambda k, name: {"cls": k % 3})
    answer = call(convert_command, tmp_path / "train-{0000..0001}.tar", tmp_path / "out", "--workers", "1")
    assert answer.code == 0, answer.err
    assert "24 samples, 3 classes" in answer.out


def _some_without(folder: Path, images: dict[str, bytes]) -> Path:
    _shards(folder, images, lambda k, name: {"cls": 1} if k % 2 else {"txt": "nothing"})
    return folder / "train-*.tar"


def _no_json(folder: Path, images: dict[str, bytes]) -> Path:
    return _tar(folder / "x.tar", {"1.jpg": next(iter(images.values())), "1.json": b"{"})


def _missing(folder: Path, images: dict[str, bytes]) -> Path:
    _shards(folder, images, lambda k, name: {"cls": 1})
    return folder / "train-{0000..0002}.tar"


def _cut_in_gzip(folder: Path, images: dict[str, bytes]) -> Path:
    path = _compressed(folder / "x.tar.gz", {"1.jpg": next(iter(images.values()))})
    path.write_bytes(path.read_bytes()[:-20])
    return path


def _gzip_of_no_tar(folder: Path, images: dict[str, bytes]) -> Path:
    (folder / "x.tar.gz").write_bytes(gzip.compress(bytes(range(256)) * 9))
    return folder / "x.tar.gz"


def _cut(folder: Path, images: dict[str, bytes]) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.jpg", next(iter(images.values())))
    (folder / "x.zip").write_bytes(buffer.getvalue()[:-30])
    return folder / "x.zip"


def _texts(folder: Path, images: dict[str, bytes]) -> Path:
    return _stored(folder / "x.zip", {"a/1.txt": b"text"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_some_without, r"has no label, and others do; give --labels none"),
        (_no_json, r"x\.tar: 1\.json is no label \(.*\); write the shard again"),
        (_missing, r"train-0002\.tar does not exist; .*train-\{0000\.\.0002\}\.tar stands for it"),
        (_cut_in_gzip, r"x\.tar\.gz is damaged \(.*\); download it again"),
        (_gzip_of_no_tar, r"is no tar or zip archive, a compressed shard, or damaged \(.*\); unpack it"),
        (_cut, r"x\.zip is no tar or zip archive"),
        (_texts, r"x\.zip holds neither images nor archives of classes"),
    ],
)
def test_what_cannot_be_read_has_one_line(
    make: Callable[[Path, dict[str, bytes]], Path], message: str, images: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(RecordsError, match=message) as caught:
        open_source(make(tmp_path, images))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_damaged_in_a_zip_is_a_damaged_image(images: dict[str, bytes], tmp_path: Path) -> None:
    path = _deflated(tmp_path / "x.zip", images)
    source = open_source(path)
    _, offset, length, _ = source.items[3].place
    content = bytearray(path.read_bytes())
    content[offset : offset + length // 2] = bytes(length // 2)
    path.write_bytes(content)
    convert(source, tmp_path / "records", ConversionSettings(workers=1, on_error="skip"))
    left_out = json.loads((tmp_path / "records" / "manifest.json").read_text())["left_out"]
    assert [note["name"] for note in left_out] == [source.items[3].name]


def test_labels_that_number_no_classes_are_refused_before_there_is_a_name_for_each() -> None:
    with pytest.raises(RecordsError, match="x has a label of 9,999,999,999; number classes 0, 1"):
        number_labels(Path("x"), ["1", "9999999999"], ["a", "b"])
    assert number_labels(Path("x"), ["1", "7" * 5000], ["a", "b"]) == (["1", "7" * 5000], [0, 1])


FIVE_AND_FIVE = struct.pack("<2I", 5, 5)  # bytes of a file, in the archive and unpacked


def _zip_with(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/b.jpg", b"image")
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"image")
    return file.getvalue()


@pytest.mark.parametrize("fault", ["a name that is not UTF-8", "no name", "a length beyond the end"])
def test_whatever_zipfile_raises_is_one_error(fault: str, tmp_path: Path) -> None:
    content = {
        "a name that is not UTF-8": lambda: _zip_with("é").replace("é".encode(), b"\xff\xff"),
        "no name": lambda: _zip_with(""),
        "a length beyond the end": lambda: _zip_with("x").replace(
            struct.pack("<2I", 5, 5), struct.pack("<2I", 2**30, 5)
        ),
    }[fault]()
    (tmp_path / "photos.zip").write_bytes(content)
    with pytest.raises(RecordsError, match=r"photos\.zip is no tar or zip archive, a compressed shard, or damaged"):
        open_source(tmp_path / "photos.zip")


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.parquet", "x.beton", "x.csv", "x"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(RecordsError, match=name):
        open_source(tmp_path / name)


def test_a_pipe_in_place_of_cifar10_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    os.mkfifo(folder / "data_batch_1")
    with pytest.raises(RecordsError, match="it is no file, but a pipe"):
        cifar10_source(tmp_path, "train")
