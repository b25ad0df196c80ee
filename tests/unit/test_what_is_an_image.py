"""What is taken for an image and a class, in folders and in archives alike, and how the rest is told."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest
from commands import call
from fake_archives import add
from jpegs import jpeg, picture

from equimod.models.settings import ConfigError
from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.folder import scan_tree
from equimod.pipelines.records.tar import load_manifest
from equimod.tools import convert_imagenet, inspect_records
from equimod.train.config.recipes import read_recipe

IMAGE = jpeg(picture(20, 16))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of two images."""
    for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"):
        _write(tmp_path / "tree" / name)
    return tmp_path / "tree"


def _write(path: Path, content: bytes = IMAGE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _packed(tree: Path, form: str) -> Path:
    """An archive of the tree, beside it."""
    path = tree.parent / f"packed.{form}"
    files = sorted(file for file in tree.rglob("*") if file.is_file())
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(tree.parent))
    else:
        with tarfile.open(path, "w") as archive:
            for file in files:
                archive.add(file, str(file.relative_to(tree.parent)))
    return path


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_what_systems_leave_behind_is_no_class_and_no_image(
    form: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/._0.jpg", ".ipynb_checkpoints/0.jpg", "b/.ipynb_checkpoints/0.jpg", "__MACOSX/a/._0.jpg"):
        _write(tree / name)
    for name in ("a/notes.txt", "b/x.HEIC", "b/y.heic", "README"):
        _write(tree / name, b"x")
    source = open_source(tree if form == "folder" else _packed(tree, form))
    assert source.classes == ["a", "b"]
    assert [item.name for item in source.items] == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "ignored: " in told
    for kind in ("3 hidden", "1 __MACOSX", "2 .heic", "1 .txt", "1 without an extension"):
        assert kind in told


def test_every_folder_is_read_once_at_its_own_place(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tree.parent / "elsewhere" / "2.jpg")
    (tree / "a" / "file.jpg").symlink_to("0.jpg")
    for link, target in {
        "aa": "b",
        "a/up": "..",
        "a/up2": "..",
        "b/self": ".",
        "a/above": "../..",
        "b/far": "../../elsewhere",
    }.items():
        (tree / link).symlink_to(target)
    found = scan_tree(tree, "folder")
    assert found.classes == ["a", "b"]
    assert found.names == ["a/0.jpg", "a/1.jpg", "a/file.jpg", "b/0.jpg", "b/1.jpg", "b/far/2.jpg"]
    assert "ignored: 5 link to a folder that is read already" in capsys.readouterr().err


def test_a_class_that_is_a_link_is_a_class(tree: Path) -> None:
    _write(tree.parent / "elsewhere" / "2.jpg")
    (tree / "aa").symlink_to(tree.parent / "elsewhere")
    found = scan_tree(tree)
    assert found.classes == ["a", "aa", "b"]
    assert found.labels == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop", "nowhere"])
def test_what_is_no_file_is_named_and_never_waited_for(kind: str, tree: Path, tmp_path: Path) -> None:
    path = tree / "b" / "0.jpg"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to({"device": "/dev/zero", "loop": "0.jpg", "nowhere": "x"}[kind])
    with pytest.raises(RecordsError, match=r"0\.jpg cannot be read: ") as caught:
        open_records(tree)
    assert "\n" not in str(caught.value)
    manifest = convert(tree, tmp_path / "out", ConversionSettings(workers=1, on_error="skip")).manifest
    assert [note.name for note in manifest.left_out] == ["b/0.jpg"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_an_archive_that_holds_an_image_twice_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{form}"
    if form == "tar":
        with tarfile.open(path, "w") as archive:
            for name in ("a/0.jpg", "b/0.jpg", "a/0.jpg"):
                add(archive, name, IMAGE)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("a/0.jpg", "b/0.jpg", "a/0.jpg"):
                archive.writestr(name, IMAGE)
    with pytest.raises(RecordsError, match=r"holds a/0\.jpg more than once"):
        open_source(path)


def test_an_archive_that_holds_a_class_twice_is_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        add(archive, "n1_0.JPEG", IMAGE)
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("n1.tar", "n2.tar", "again/n1.tar"):
            add(archive, name, inner.getvalue())
    with pytest.raises(RecordsError, match=r"holds n1\.tar more than once"):
        open_source(path)


def test_a_devkit_beside_an_archive_changes_no_labels(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"not even one")
    for path, names in {
        "train.tar": ["n1/n1_7.JPEG", "n2/n2_3.JPEG"],
        "flat.tar": ["n1_7.JPEG", "ILSVRC2012_val_00000001.JPEG"],
    }.items():
        with tarfile.open(tmp_path / path, "w") as archive:
            for name in names:
                add(archive, name, IMAGE)
    assert open_source(tmp_path / "train.tar").classes == ["n1", "n2"]
    assert open_source(tmp_path / "flat.tar").classes == []


def test_an_empty_folder_called_like_a_split_is_no_split(tree: Path) -> None:
    (tree / "test").mkdir()
    assert scan_tree(tree).classes == ["a", "b", "test"]


def test_the_command_tells_what_it_ignores(tree: Path, tmp_path: Path) -> None:
    _write(tree / "a" / "x.mov", b"x")
    done = call(convert_imagenet.main, tree, tmp_path / "out", "--workers", "1")
    assert done.code == 0
    assert f"{tree}: ignored: 1 .mov" in done.err


def test_a_file_in_a_zip_unpacks_to_no_more_than_the_limit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree.parent / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.jpg", IMAGE)
        archive.writestr("a/1.jpg", bytes(2**20))
    monkeypatch.setattr("equimod.pipelines.records.archive.LARGEST_FILE", 2**16)
    manifest = convert(path, tree.parent / "out", ConversionSettings(workers=1, on_error="skip")).manifest
    assert [(note.name, "longer than 65,536 bytes" in note.reason) for note in manifest.left_out] == [("1.jpg", True)]


def test_a_long_name_in_a_tar_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = b"L", 2**21
    path = tmp_path / "x.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"x" * member.size + bytes(1024))
    with pytest.raises(RecordsError, match="a header of 2,097,152 bytes"):
        open_source(path)


def test_a_devkit_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, "data/meta.mat", bytes(17 * 2**20))
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as archive:
        add(archive, "ILSVRC2012_val_00000001.JPEG", IMAGE)
    with pytest.raises(RecordsError, match="it unpacks to more than 16,777,216 bytes"):
        open_source(tmp_path / "ILSVRC2012_img_val.tar")


def test_aliases_in_a_recipe_are_refused(tmp_path: Path) -> None:
    levels = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    (tmp_path / "x.yaml").write_text("\n".join(levels))
    with pytest.raises(ConfigError, match=r"x\.yaml is not YAML in UTF-8: an alias \(\*a0\); write the value out"):
        read_recipe(tmp_path / "x.yaml")


NAMES = ["new\nline.jpg", "escape\x1b[2J.jpg", os.fsdecode(b"caf\xe9.jpg"), "写真 🙃.jpg"]


def test_names_of_any_kind_are_told_in_one_line(tree: Path, tmp_path: Path) -> None:
    for name in NAMES:
        _write(tree / "a" / name, IMAGE[:200])
    done = call(convert_imagenet.main, tree, tmp_path / "out", "--workers", "1")
    assert done.code == 1
    assert done.err.count("\n") == len(NAMES) + 1
    assert "\x1b" not in done.err
    assert r"a/new\nline.jpg" in done.err
    assert "写真" in done.err
    done.err.encode()
    assert call(convert_imagenet.main, tree, tmp_path / "out", "--workers", "1", "--on-error", "skip").code == 0
    assert r"caf\udce9.jpg" in " ".join(note.name for note in load_manifest(tmp_path / "out").left_out)


def test_records_keep_names_of_any_kind(tree: Path, tmp_path: Path) -> None:
    for name in NAMES:
        _write(tree / "a" / name)
    for output in ("tar", "x.beton"):
        options = ("--format", "ffcv") if output.endswith("beton") else ()
        assert call(convert_imagenet.main, tree, tmp_path / output, "--workers", "1", *options).code == 0
        records = open_records(tmp_path / output)
        assert {f"a/{name}" for name in NAMES} <= {records.source(at) for at in range(len(records))}


def test_a_sheet_takes_names_of_any_kind(tree: Path, tmp_path: Path) -> None:
    for name in ("new\nline", os.fsdecode(b"caf\xe9"), "写真"):
        _write(tree / name / "0.jpg")
    done = call(inspect_records.main, tree, "--sheet", tmp_path / "sheet.png")
    assert (done.code, done.err) == (0, "")
    assert r"new\nline, " in done.out
    done.out.encode()
