"""Records in .beton files: damage is one error, whatever it is. Stock ffcv: tests/peers/test_formats.py."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records.beton import BetonRecords
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


def _read_all(records: BetonRecords) -> None:
    if records.manifest is None:
        raise RecordsError("without a trailer it is a file of another program, which tools/inspect_records.py says")
    for position in range(len(records)):
        records.read(position)


def test_any_damage_is_noticed_by_reading_as_a_records_error(small: Path) -> None:
    """Bytes that are used are held to a checksum or to what can be true; the rest is padding or an unused argument."""
    content = small.read_bytes()
    records = BetonRecords(small)
    used = [(0, 24), *((24 + 1041 * field, 24 + 1041 * field + 17) for field in range(5))]
    used += [(24 + 5 * 1041 + 7, 24 + 5 * 1041 + 7 + 48 * 24)] * 20  # metadata
    used += [(int(at), int(at + size)) for at, size in zip(records._pointer, records.length, strict=True)]
    rng = np.random.default_rng(0)
    for start, end in used:
        place = int(rng.integers(start, end))
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        small.write_bytes(damaged)
        try:
            _read_all(BetonRecords(small))
        except RecordsError:
            continue
        assert place in range(4, 8), place  # the page size, which only ffcv's other cache looks at


def test_a_damaged_sample_is_named(small: Path) -> None:
    records = BetonRecords(small)
    with small.open("r+b") as file:
        file.seek(int(records._pointer[9]) + 30)
        file.write(b"\0\1\2\3")
    with pytest.raises(RecordsError, match=r"class_1/001\.jpg \(small\.beton\) is damaged"):
        _read_all(BetonRecords(small))


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
