"""Names of samples and remarks on them: kept apart, carried from format to format, and no burden where all have one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import call
from conversions import converted
from jpegs import HARMLESS, harmless, jpeg, picture
from PIL import Image

from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.records import open_records
from equimod.pipelines.records.names import Names, pack_names
from equimod.pipelines.records.protocol import RecordsError
from equimod.tools import inspect_records

NAMES = ["a/1.jpg", 'quoted "x".png', "two\nlines", "caf\udce9.jpg", ""]


def test_names_are_found_by_their_position() -> None:
    names = Names("names.jsonl", lambda: pack_names(NAMES))
    assert [names.at(position) for position in range(5)] == NAMES


def test_names_are_read_once_and_only_where_one_is_asked_for() -> None:
    read: list[int] = []

    def content() -> bytes:
        read.append(1)
        return pack_names(NAMES)

    names = Names("names.jsonl", content)
    assert read == []
    assert names.at(0) == names.at(0) == "a/1.jpg"
    assert read == [1]


@pytest.mark.parametrize("content", [b"", b"[1\n", b"\xff\n", b'"a" "b"\n', b"[" * 100_000 + b"\n"])
def test_what_is_no_names_is_one_error_even_with_its_digest(content: bytes) -> None:
    with pytest.raises(RecordsError, match=r"names\.jsonl holds damaged names"):
        Names("names.jsonl", lambda: content).at(0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven plain JPEGs, one of which libjpeg warns of, and three PNGs, with shards where numbers begin anew."""
    folder = tmp_path / "source"
    for number in range(10):
        path = folder / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        if number in (2, 5, 9):
            Image.fromarray(picture(40, 30)).save(path, "PNG")
        else:
            path.write_bytes(harmless(jpeg(picture(40, 30)), HARMLESS[0]) if number == 7 else jpeg(picture(40, 30)))
    return folder


@pytest.mark.parametrize("output", ["tar", "r.beton"])
def test_a_sample_says_what_is_remarked_on_it_in_every_format(output: str, source: Path, tmp_path: Path) -> None:
    records = converted(source, tmp_path / "first", shard_size=6)
    if output == "r.beton":
        records = converted(tmp_path / "first", tmp_path / output)
    again = converted(tmp_path / ("first" if output == "tar" else output), tmp_path / "again")
    for found in (records, again):
        assert found.manifest is not None
        assert found.manifest.reencoded == {"PNG file": 3}
        assert found.manifest.harmless.total() == 1
        assert found.remark.tolist() == [0, 0, 1, 0, 0, 1, 0, 2, 0, 1]
        assert [remark.samples for remark in found.manifest.remarks] == [3, 1]
        assert [found.source(position) for position in range(10)] == [f"{number}.jpg" for number in range(10)]


def test_the_manifest_does_not_grow_with_what_is_remarked(source: Path, tmp_path: Path) -> None:
    few = converted(source, tmp_path / "few")
    for number in range(10, 40):
        shutil.copy(source / "2.jpg", source / f"{number}.jpg")
    many = converted(source, tmp_path / "many")
    assert many.manifest is not None
    assert many.manifest.reencoded == {"PNG file": 33}
    sizes = [(tmp_path / name / "manifest.json").stat().st_size for name in ("few", "many")]
    assert sizes[1] - sizes[0] < 20, few


def test_inspect_names_some_of_them(source: Path, tmp_path: Path) -> None:
    converted(source, tmp_path / "records")
    answer = call(inspect_records.main, tmp_path / "records")
    assert answer.code == 0
    assert "re-encoded    3, PNG file (2.jpg; 5.jpg; 9.jpg)\n" in answer.out
    assert "harmless      1, " in answer.out


@pytest.mark.parametrize("form", ["tar", "beton"])
def test_damaged_names_are_found_where_one_is_asked_for_and_stop_nothing_else(
    form: str, source: Path, tmp_path: Path
) -> None:
    path = tmp_path / ("tar" if form == "tar" else "r.beton")
    converted(source, path)
    file = path / "names.jsonl" if form == "tar" else path
    file.write_bytes(file.read_bytes().replace(b'"3.jpg"\n"4.jpg"', b'"3.jpg"\n"X.jpg"'))
    records = open_records(path)
    with pytest.raises(RecordsError, match="digest"):
        records.source(3)
    assert records.name(3).startswith("sample 3 (")
    assert records.read(3)
    answer = call(inspect_records.main, path)
    assert answer.code == 1
    assert "digest" in answer.err


def test_names_lie_beside_the_samples_for_other_programs(source: Path, tmp_path: Path) -> None:
    converted(source, tmp_path / "records")
    lines = (tmp_path / "records" / "names.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [f"{number}.jpg" for number in range(10)]


def test_a_remark_that_the_manifest_does_not_have_is_refused(source: Path, tmp_path: Path) -> None:
    records = converted(source, tmp_path / "records")
    assert records.manifest is not None
    write_beton(records, tmp_path / "r.beton", replace(records.manifest, remarks=records.manifest.remarks[:1]))
    with pytest.raises(RecordsError, match="metadata that cannot be true"):
        open_records(tmp_path / "r.beton")
