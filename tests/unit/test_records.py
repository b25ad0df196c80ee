from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.folder import FolderRecords, scan_tree
from equimod.pipelines.records.protocol import fingerprint
from equimod.pipelines.records.selection import spread_over
from equimod.pipelines.records.tar import TarRecords


@pytest.fixture(scope="module")
def converted(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "records"
    convert(image_tree, output, ConversionSettings(workers=1, shard_size=5))
    return output


@pytest.fixture
def records(converted: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(converted, tmp_path / "records"))


def draw(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(path, "JPEG")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(RecordsError) as caught:
        open_records(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_index_of_a_folder_is_that_of_torchvision(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in (
        "b/2.jpg",
        "b/10.JPG",
        "b/1.jpeg",
        "b/sub/1.jpg",
        "b/sub-1/1.jpg",
        "b/a/z/1.png",
        "B/x.JPEG",
        "a/é.webp",
    ):
        draw(root / name)
    draw(tmp_path / "elsewhere" / "linked.jpg")
    (root / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "notes.txt").write_text("x")
    (root / "readme.jpg").write_text("beside the classes")
    expected = ImageFolder(str(root))
    tree = scan_tree(root, "folder")
    assert tree.classes == expected.classes
    assert [(str(tree.path(i)), tree.labels[i]) for i in range(len(tree.names))] == expected.samples


def test_folder_gives_files_and_original_sizes(image_tree: Path) -> None:
    records = open_records(image_tree)
    expected = ImageFolder(str(image_tree))
    assert isinstance(records, FolderRecords)
    assert records.label.tolist() == expected.targets
    assert records.index.tolist() == list(range(len(expected)))
    for position, (path, _) in enumerate(expected.samples):
        assert records.read(position) == Path(path).read_bytes()
        with Image.open(path) as image:
            assert tuple(records.size[position]) == image.size
        assert records.name(position) == path


def test_records_hold_what_the_folder_holds(image_tree: Path, converted: Path) -> None:
    folder, tar = open_records(image_tree), open_records(converted)
    assert isinstance(tar, TarRecords)
    assert tar.classes == folder.classes
    for column in ("label", "index", "size"):
        np.testing.assert_array_equal(getattr(tar, column), getattr(folder, column))
    assert [bytes(tar.read(i)) for i in range(len(tar))] == [folder.read(i) for i in range(len(folder))]
    assert fingerprint(tar).table == fingerprint(folder).table


def test_fingerprint_tells_contents_apart(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.jpg")
    path = draw(tmp_path / "b" / "1.jpg")
    first = fingerprint(open_records(tmp_path))
    assert fingerprint(open_records(tmp_path)) == first
    with path.open("ab") as file:
        file.write(b"\0")
    second = fingerprint(open_records(tmp_path))
    assert second.table == first.table
    (tmp_path / "b").rename(tmp_path / "c")
    third = fingerprint(open_records(tmp_path))
    assert len({first.content, second.content, third.table, first.table}) == 4


def test_fingerprint_tells_another_picture_of_the_same_length_and_its_date(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.bmp"
    path.parent.mkdir()
    image = Image.new("RGB", (8, 8), "white")
    image.save(path)
    first, dates = fingerprint(open_records(tmp_path)), path.stat()
    Image.new("RGB", (8, 8), "black").save(path)
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    second = fingerprint(open_records(tmp_path))
    assert (second.table, second.dates) == (first.table, first.dates)
    assert second.content != first.content
    image.save(path)
    third = fingerprint(open_records(tmp_path))
    assert (third.table, third.content) == (first.table, first.content)
    assert third.dates != first.dates


def test_records_of_the_same_files_have_the_same_content_in_both_formats(image_tree: Path, tmp_path: Path) -> None:
    settings = ConversionSettings(workers=1)
    convert(image_tree, tmp_path / "tar", settings)
    convert_to_beton(open_source(image_tree), tmp_path / "x.beton", settings)
    assert fingerprint(open_records(tmp_path / "tar")) == fingerprint(open_records(tmp_path / "x.beton"))


def test_name_tells_source_and_shard(converted: Path) -> None:
    tar = open_records(converted)
    assert tar.name(9) == "class_1/001.jpg (records/shard-000001.tar)"


def test_reading_is_safe_from_several_threads(image_tree: Path, converted: Path) -> None:
    folder, tar = open_records(image_tree), open_records(converted)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: bytes(tar.read(i % len(tar))), range(10 * len(tar))))
    assert read == [folder.read(i) for i in range(len(folder))] * 10


def test_checksums_find_a_changed_byte(records: Path) -> None:
    opened = TarRecords(records)
    *_, third = opened.manifest.shards[:3]
    opened.verify_shard(third)
    with (records / "shard-000002.tar").open("r+b") as file:
        file.seek(700)
        byte = file.read(1)
        file.seek(700)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(RecordsError, match=r"shard-000002\.tar does not have the digest"):
        opened.verify_shard(third)


def test_shorter_shard_is_found_when_opening(records: Path) -> None:
    shard = records / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    message = error_of(records)
    assert "shard-000001.tar has" in message
    assert "convert again" in message


def test_shard_cut_after_opening_is_an_error_not_a_crash(records: Path) -> None:
    tar = open_records(records)
    shard = records / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:1024])
    with pytest.raises(RecordsError, match=r"shard-000001\.tar is cut short, before byte"):
        tar.read(9)


def test_missing_shard_is_found_when_opening(records: Path) -> None:
    (records / "shard-000001.tar").unlink()
    assert "shard-000001.tar cannot be read" in error_of(records)


def test_another_version_is_named_with_the_remedy(records: Path) -> None:
    manifest = json.loads((records / "manifest.json").read_text())
    (records / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    message = error_of(records)
    assert "version 99" in message
    assert "version 4" in message
    assert "convert the source again" in message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "equimod-tar", "version": 1}'])
def test_damaged_manifest_is_one_line(records: Path, content: str) -> None:
    (records / "manifest.json").write_text(content)
    assert "convert the source again" in error_of(records)


@pytest.mark.parametrize("name", ["samples.npy", "names.jsonl", "classes.json"])
def test_missing_table_is_one_line(records: Path, name: str) -> None:
    (records / name).unlink()
    assert name in error_of(records)


@pytest.mark.parametrize("left", [".progress", "shard-000000.tar"])
def test_interrupted_conversion_names_the_remedy(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir()
    assert "run the converter again" in error_of(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    assert "holds no images (.jpg, .jpeg, .png" in error_of(tmp_path)


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    assert "x.jpg is no records, folder or list of images; where it is an archive" in error_of(draw(tmp_path / "x.jpg"))
    assert "run equimod convert" in error_of(tmp_path / "train-{000..146}.tar")


def test_classes_without_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "a" / "1.jpg")
    for i in range(7):
        (tmp_path / f"empty_{i}").mkdir()
    assert open_records(tmp_path).classes == ["a", *(f"empty_{i}" for i in range(7))]
    told = capsys.readouterr().err
    assert "classes without images: empty_0, empty_1, empty_2, empty_3, empty_4 and 2 more" in told


@pytest.mark.parametrize("name", ["a/1.jpg", "a.jpg"])
def test_folder_named_like_an_image(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "a" / "0.jpg")
    draw(tmp_path / name / "2.jpg")
    assert f"{tmp_path / name} is a folder named like an image" in error_of(tmp_path)


def test_several_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw(tmp_path / split / "a" / "1.jpg")
    assert f"give one, such as {tmp_path / 'train'}" in error_of(tmp_path)


def test_class_called_test_is_a_class(tmp_path: Path) -> None:
    draw(tmp_path / "test" / "1.jpg")
    draw(tmp_path / "other" / "1.jpg")
    assert open_records(tmp_path).classes == ["other", "test"]


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a" / "1.jpg")
    locked = tmp_path / "b"
    draw(locked / "1.jpg")
    scandir = os.scandir

    def deny(path: str) -> object:  # root may read everything: chmod would not do
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", deny)
    assert f"{locked} cannot be read: Permission denied" in error_of(tmp_path)


def test_unreadable_and_damaged_images(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.jpg"
    path.parent.mkdir()
    path.symlink_to("nowhere")
    assert f"{path} cannot be read: No such file" in error_of(tmp_path)
    path.unlink()
    path.write_bytes(b"no image")
    assert f"{path} cannot be read: it is no image" in error_of(tmp_path)


def test_image_removed_after_opening(tmp_path: Path) -> None:
    path = draw(tmp_path / "a" / "1.jpg")
    records = open_records(tmp_path)
    path.unlink()
    with pytest.raises(RecordsError, match="cannot be read"):
        records.read(0)


def test_selected_samples_keep_what_they_are(image_tree: Path) -> None:
    records = open_records(image_tree)
    some = spread_over(records, 6)
    assert some.index.tolist() == [0, 4, 8, 12, 16, 20]
    assert [some.read(position) for position in range(6)] == [records.read(4 * position) for position in range(6)]
    assert [some.source(5), some.name(5)] == [records.source(20), records.name(20)]
    assert np.array_equal(some.size, records.size[::4])
    assert len(spread_over(records, 100)) == len(records)
    asked: list[int] = []
    records.will_read = lambda positions: asked.extend(positions.tolist())
    some.will_read(np.array([1, 3]))
    assert asked == [4, 12]
