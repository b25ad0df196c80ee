"""Records in .beton files: damage is one error, whatever it is. Stock ffcv: tests/peers/test_formats.py."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records.beton import FIELD, HEADER, IMAGE, MAGIC, BetonRecords
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.records.tar import TarRecords


@pytest.fixture
def small(image_tree: Path, tmp_path: Path) -> Path:
    convert(image_tree, tmp_path / "tar", ConversionSettings(workers=1))
    records = TarRecords(tmp_path / "tar")
    write_beton(records, tmp_path / "small.beton", records.manifest)
    return tmp_path / "small.beton"


def test_a_smaller_file_is_cut_short_wherever_it_is_cut(small: Path) -> None:
    content = small.read_bytes()
    for length in [0, 10, 24, 1000, 5300, *range(6000, len(content) - 1, len(content) // 40), len(content) - 1]:
        small.write_bytes(content[:length])
        with pytest.raises(RecordsError, match=r"small\.beton"):
            BetonRecords(small)


def _with_fields(path: Path, change: Callable[[NDArray[np.void]], None]) -> None:
    """Change the descriptors of the fields of a file that another program wrote."""
    content = bytearray(path.read_bytes().replace(MAGIC, bytes(len(MAGIC))))
    change(np.frombuffer(content, FIELD, 5, HEADER.itemsize))
    path.write_bytes(content)


def test_two_fields_of_one_name_are_refused(small: Path) -> None:
    _with_fields(small, lambda fields: fields["name"].__setitem__(4, b"width"))
    with pytest.raises(RecordsError, match=r"small\.beton has two fields of one name; copy it again or write it anew"):
        BetonRecords(small)


def test_labels_that_number_no_classes_are_refused_before_there_is_a_name_for_each(small: Path) -> None:
    records = BetonRecords(small)
    content = bytearray(small.read_bytes().replace(MAGIC, bytes(len(MAGIC))))
    table = HEADER.itemsize + 5 * FIELD.itemsize
    kind = np.dtype([("image", IMAGE), *((name, "<i8") for name in records.fields[1:])], align=True)
    np.frombuffer(content, kind, 24, table)["label"][3] = 2**40
    small.write_bytes(content)
    with pytest.raises(
        RecordsError, match=r"small\.beton has a label of 1,099,511,627,776; number classes 0, 1, \.\.\."
    ):
        BetonRecords(small)


def test_a_damaged_sample_is_named(small: Path) -> None:
    records = BetonRecords(small)
    with small.open("r+b") as file:
        file.seek(int(records._pointer[9]) + 30)
        file.write(b"\0\1\2\3")
    with pytest.raises(RecordsError, match=r"class_1/001\.jpg \(small\.beton\) is damaged"):
        BetonRecords(small).read(9)


def test_an_image_that_is_too_wide_for_the_format_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tree" / "class").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("L", (65_400, 1)).save(buffer, "JPEG")
    (tmp_path / "tree" / "class" / "wide.jpg").write_bytes(buffer.getvalue())
    convert(tmp_path / "tree", tmp_path / "tar", ConversionSettings(workers=1))
    records = TarRecords(tmp_path / "tar")
    records.stored_size = np.array([[70_000, 1]], dtype=np.int32)
    with pytest.raises(RecordsError, match=r"wide\.jpg.*--max-side"):
        write_beton(records, tmp_path / "wide.beton", records.manifest)
    assert not (tmp_path / "wide.beton").exists()
