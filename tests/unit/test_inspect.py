"""tools/inspect_records.py: what records hold, which sample is damaged, and a picture of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call
from PIL import Image

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.check import Shrink
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import open_records
from equimod.tools.inspect_records import CELL, COLUMNS, contact_sheet, main


@pytest.fixture
def paths(image_tree: Path, tmp_path: Path) -> dict[str, Path]:
    source = open_source(image_tree)
    convert(source, tmp_path / "tar", ConversionSettings(workers=1, shrink=Shrink(50, 90)))
    convert_to_beton(source, tmp_path / "r.beton", ConversionSettings(workers=1, raw=True))
    return {"tree": image_tree, "tar": tmp_path / "tar", "beton": tmp_path / "r.beton"}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("tree", ["folder of images", "24 JPEG", "no checksums"]),
        ("tar", ["tar shards", "stored ", "longer side 50", "every checksum fits"]),
        ("beton", ["fields image, label, index, width, height", "24 pixels", "every checksum fits"]),
    ],
)
def test_it_says_what_is_inside(form: str, words: list[str], paths: dict[str, Path], tmp_path: Path) -> None:
    answer = call(main, paths[form], "--sheet", tmp_path / "sheet.png")
    assert answer.code == 0, answer.err
    for word in [*words, "24, indices 0 to 23", "class_0, class_1, class_2", "8 to 8 samples"]:
        assert word in answer.out
    assert Image.open(tmp_path / "sheet.png").width == CELL * COLUMNS


@pytest.mark.parametrize("form", ["tar", "beton"])
def test_damage_is_named_and_exits_with_1(form: str, paths: dict[str, Path]) -> None:
    path = paths[form] / "shard-000000.tar" if form == "tar" else paths[form]
    content = open_records(paths[form]).read(5)
    damaged = path.read_bytes().replace(bytes(content), bytes(content)[:-9] + b"\0damaged\0")
    path.write_bytes(damaged)
    answer = call(main, paths[form])
    assert answer.code == 1
    assert "class_0/005.jpg" in answer.err
    assert "checksum" in answer.err
    assert call(main, paths[form], "--no-verify").code == 0


@pytest.mark.parametrize(("arguments", "code"), [(["--samples", "0"], 2), (["--sheet", "x.jpg"], 2), ([], 1)])
def test_bad_input_is_one_line(arguments: list[str], code: int, tmp_path: Path) -> None:
    answer = call(main, tmp_path / "nothing", *arguments)
    assert (answer.code, answer.err.count("\n")) == (code, 1)
    assert answer.err.startswith("error: ")


def test_a_sheet_shows_no_more_samples_than_there_are(image_tree: Path) -> None:
    records = open_records(image_tree)
    assert contact_sheet(records, 1000).size == contact_sheet(records, 24).size
    assert contact_sheet(records, 1).width == CELL
