"""Parquet files as Hugging Face publishes them are converted in their order, with the names of their labels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.check import Encoding
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import Records, RecordsError, open_records
from equimod.tools.convert_imagenet import main as convert_command

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
NAMES = ["ape", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def images(image_tree: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(image_tree.rglob("*.jpg"))]


def _write(
    path: Path,
    images: list[bytes | None],
    labels: list[Any] | None,
    names: list[str] | None = None,
    image: str = "image",
) -> Path:
    """Row groups of 5 images, as `datasets` writes them: the features stand in the metadata of the schema."""
    stored = [{"bytes": content, "path": f"{row:02d}.jpg"} for row, content in enumerate(images)]
    columns: dict[str, Any] = {image: pyarrow.array(stored, IMAGE)}
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pyarrow.array(labels)
        features["label"] = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), path, row_group_size=5)
    return path


def _converted(path: Path, tmp_path: Path) -> Records:
    convert(open_source(path), tmp_path / "records", ConversionSettings(workers=2, shard_size=7))
    return open_records(tmp_path / "records")


def _two_files(folder: Path, images: list[bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for number, part in enumerate((images[:13], images[13:])):
        labels = [(13 * number + row) % 3 for row in range(len(part))]
        _write(folder / f"train-{number:05d}-of-00002.parquet", list(part), labels, NAMES)


@pytest.mark.parametrize("given", ["", "train-*.parquet", "train-{00000..00001}-of-00002.parquet"])
def test_files_keep_their_order_their_bytes_and_the_names_of_the_schema(
    given: str, images: list[bytes], tmp_path: Path
) -> None:
    _two_files(tmp_path / "data", images)
    records = _converted(tmp_path / "data" / given, tmp_path)
    assert records.classes == NAMES, "the class that no sample has counts as well"
    assert records.label.tolist() == [row % 3 for row in range(24)]
    assert [bytes(records.read(row)) for row in range(24)] == images
    assert records.source(13) == "train-00001-of-00002/00.jpg"


def test_one_file_is_a_source_and_labels_can_be_left_out(images: list[bytes], tmp_path: Path) -> None:
    path = _write(tmp_path / "one.parquet", list(images), [row % 3 for row in range(24)], NAMES, image="img")
    assert open_source(path).classes == NAMES
    without = open_source(path, labels="none")
    assert (without.classes, {item.label for item in without.items}) == ([], {-1})


@pytest.mark.parametrize(
    ("labels", "classes", "first"),
    [
        ([2, 0] * 12, ["0", "1", "2"], 2),
        (["owl", "elk"] * 12, ["elk", "owl"], 1),
        ([-1] * 24, [], -1),
        (None, [], -1),
    ],
    ids=["numbers", "words", "of a test set", "none"],
)
def test_labels_without_names(
    labels: list[Any] | None, classes: list[str], first: int, images: list[bytes], tmp_path: Path
) -> None:
    source = open_source(_write(tmp_path / "a.parquet", list(images), labels))
    assert source.classes == classes
    assert source.items[0].label == first


def test_files_without_the_metadata_of_hugging_face_are_read_by_their_columns(
    images: list[bytes], tmp_path: Path
) -> None:
    stored = [{"bytes": content, "path": None} for content in images]
    table = pyarrow.table({"label": [1] * 24, "picture": pyarrow.array(stored, IMAGE)})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert (source.classes, source.items[3].name) == (["0", "1"], "a/3")
    assert source.reader.load(source.items[3], Encoding()).content == images[3]


def test_a_folder_of_splits_is_asked_about(images: list[bytes], tmp_path: Path) -> None:
    _two_files(tmp_path, images)
    _write(tmp_path / "validation-00000-of-00001.parquet", list(images), None)
    with pytest.raises(
        RecordsError, match=r"several splits \(train, validation\); give one, such as '.*/train-\*\.par"
    ):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "train-*.parquet").items) == 24


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, -1] * 12, NAMES, r"a/01\.jpg has no label, and others do; give --labels none"),
        ([0, 4] * 12, NAMES, "has labels up to 4, and names for 4 of them"),
    ],
)
def test_labels_that_are_missing_or_unknown_are_told(
    labels: list[int], names: list[str], message: str, images: list[bytes], tmp_path: Path
) -> None:
    with pytest.raises(RecordsError, match=message):
        open_source(_write(tmp_path / "a.parquet", list(images), labels, names))


def test_what_is_no_parquet_file_of_images_is_told_in_one_line(images: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(RecordsError, match=r"a\.parquet is no parquet file, or a damaged one"):
        open_source(path)
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    with pytest.raises(RecordsError, match=r"no column of images, each with its bytes and path \(it has text\)"):
        open_source(path)
    _two_files(tmp_path / "data", images)
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "data" / "train-00002.parquet")
    with pytest.raises(RecordsError, match=r"train-00002\.parquet has no column image\.path"):
        open_source(tmp_path / "data")


def test_an_image_without_bytes_or_with_damaged_ones_is_left_out(images: list[bytes], tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", [None, *images[:5], images[5][:200], *images[6:]], None)
    settings = ConversionSettings(workers=1, on_error="skip")
    manifest = convert(open_source(path), tmp_path / "records", settings).manifest
    first = manifest.left_out[0]
    assert (first.name, first.reason) == ("a/00.jpg", "no bytes are stored, only a path")
    assert [note.index for note in manifest.left_out] == [0, 6]


def test_training_says_that_parquet_is_converted_first(images: list[bytes], tmp_path: Path) -> None:
    _two_files(tmp_path, images)
    for path in (tmp_path, tmp_path / "train-00000-of-00002.parquet", tmp_path / "train-*.parquet"):
        with pytest.raises(RecordsError, match=re.escape(f"equimod convert {path} RECORDS first")):
            open_records(path)


def test_without_pyarrow_the_error_names_the_install_command(
    images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path / "other.parquet", list(images), None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setattr("sys.argv", ["convert", str(path), str(tmp_path / "records"), "--format", "dali"])
    assert convert_command() == 1
    assert "pip install 'equimod[parquet]'" in capsys.readouterr().err
