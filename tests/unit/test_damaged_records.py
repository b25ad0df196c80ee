"""Records of which any byte changed are noticed, and files of ours of any content are answered by one kind of error."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.conversion.shard_task import ShardDone
from equimod.pipelines.decode import decode_sample
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.tar import TarRecords
from equimod.pipelines.stored import DamagedFileError, FileDigest, decode_json

SETTINGS = ConversionSettings(workers=1, shard_size=4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of six small pictures, as shards and as .beton files of JPEGs and of pixels."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(6):
        path = folder / "tree" / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16 + number, 12), (40 * number, 90, 30)).save(path)
    convert(folder / "tree", folder / "tar", SETTINGS)
    convert_to_beton(open_source(folder / "tree"), folder / "jpeg.beton", SETTINGS)
    raw = ConversionSettings(workers=1, raw=True)
    convert_to_beton(open_source(folder / "tree"), folder / "raw.beton", raw)
    return folder


def _all_of(path: Path) -> str:
    """A digest of everything that records give, when all of it is looked at. Raises RecordsError."""
    records = open_records(path)
    digest = hashlib.sha256(json.dumps([records.classes, records.index.tolist(), records.label.tolist()]).encode())
    digest.update(records.size.tobytes() + records.stored_size.tobytes())
    for position in range(len(records)):
        digest.update(decode_sample(records, position).tobytes() + records.source(position).encode())
    if isinstance(records, TarRecords):
        records.verify()
    return digest.hexdigest()


def _is_noticed(path: Path, expected: str, name: str) -> bool:
    """Whether records are refused, by this file's name; otherwise they give what they gave before."""
    try:
        found = _all_of(path)
    except RecordsError as error:
        return name in str(error) or pytest.fail(f"another file is named: {error}")
    assert found == expected, "a changed byte changes what is read"
    return False


def _flips(path: Path, count: int) -> int:
    """Flip `count` bits of a file of tar records, one at a time: how many were noticed."""
    expected, content = _all_of(path.parent), path.read_bytes()
    places = np.random.default_rng(0).choice(8 * len(content), min(count, 8 * len(content)), replace=False).tolist()
    noticed = 0
    for place in places:
        _change(path, place // 8, content[place // 8] ^ 1 << place % 8)
        noticed += _is_noticed(path.parent, expected, path.name)
        _change(path, place // 8, content[place // 8])
    return noticed


def _change(path: Path, place: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([value]))


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.ci)])
def test_every_flipped_bit_of_tar_records_is_noticed(small: Path, tmp_path: Path, count: int) -> None:
    shutil.copytree(small / "tar", tmp_path / "tar")
    for path in sorted((tmp_path / "tar").iterdir()):
        assert _flips(path, count) == min(count, 8 * path.stat().st_size)


HEAD = 6000  # bytes: header and descriptors of the fields


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.ci)])
def test_every_flipped_bit_of_a_beton_is_noticed_or_lies_between_its_parts(
    small: Path, tmp_path: Path, kind: str, count: int
) -> None:
    path = Path(shutil.copy(small / f"{kind}.beton", tmp_path))
    content = path.read_bytes()
    expected = _all_of(path)
    draw = np.random.default_rng(0)
    # Its page of 8 MiB is nearly empty: half of the places are in the head, half where a byte is not zero.
    filled = np.flatnonzero(np.frombuffer(content, np.uint8))
    places = [*draw.integers(HEAD, size=count // 2).tolist(), *draw.choice(filled, count // 2).tolist()]
    for place in places:
        _change(path, place, content[place] ^ 1 << int(draw.integers(8)))
        if not _is_noticed(path, expected, path.name):
            assert content[place] == 0, f"byte {place} is part of the content"
        _change(path, place, content[place])


def _reseal(records: Path) -> None:
    """Digests that fit again, as another program could write them."""
    fields = json.loads((records / "manifest.json").read_text())
    for name in fields["files"]:
        found = FileDigest.of(records / name)
        fields["files"][name] = {"length": found.length, "sha256": found.sha256}
    fields.pop("sha256", None)
    text = json.dumps(fields, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (records / "manifest.json").write_text(text.removesuffix("\n}") + f',\n "sha256": "{digest}"\n}}')


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", 2), ("label", -1), ("index", 0), ("index", -5), ("width", 0), ("stored_height", -3)],
)
def test_a_table_that_cannot_be_true_is_refused_even_with_its_digest(
    small: Path, tmp_path: Path, column: str, value: int
) -> None:
    records = Path(shutil.copytree(small / "tar", tmp_path / "tar"))
    table = np.load(records / "samples.npy")
    table[column][3] = value
    np.save(records / "samples.npy", table)
    _reseal(records)
    with pytest.raises(RecordsError, match=r"samples\.npy holds what cannot be true"):
        open_records(records)


@pytest.mark.parametrize(("column", "value"), [("offset", -8), ("offset", 2**62), ("size", 2**40), ("size", -1)])
def test_a_place_outside_the_shard_is_an_error_of_reading(small: Path, tmp_path: Path, column: str, value: int) -> None:
    records = Path(shutil.copytree(small / "tar", tmp_path / "tar"))
    table = np.load(records / "samples.npy")
    table[column][3] = value
    np.save(records / "samples.npy", table)
    _reseal(records)
    with pytest.raises(RecordsError, match="shard-000000"):
        open_records(records).read(3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"noise", b"\x93NUMPY\x01\0\xff\xff{}"])
def test_a_table_of_another_form_is_refused_even_with_its_digest(small: Path, tmp_path: Path, content: bytes) -> None:
    records = Path(shutil.copytree(small / "tar", tmp_path / "tar"))
    (records / "samples.npy").write_bytes(content)
    _reseal(records)
    with pytest.raises(RecordsError, match=r"samples\.npy is damaged .*; copy the records or convert again"):
        open_records(records)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _answered(read: Callable[[], object]) -> None:
    with suppress(RecordsError, DamagedFileError):
        read()


@pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.ci)])
def test_manifests_of_any_values_are_answered(small: Path, tmp_path: Path, examples: int) -> None:
    records = Path(shutil.copytree(small / "tar", tmp_path / "tar"))
    original = (records / "manifest.json").read_text()
    names = sorted(json.loads(original))

    @settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(name=st.sampled_from(names), value=JSON)
    def answered(name: str, value: Any) -> None:
        fields = json.loads(original)
        fields[name] = value
        (records / "manifest.json").write_text(json.dumps(fields))
        _answered(lambda: _all_of(records))
        if isinstance(fields["files"], dict):
            try:
                _reseal(records)
            except (OSError, TypeError, ValueError):  # of files that this test cannot seal
                return
            _answered(lambda: _all_of(records))

    answered()


@pytest.mark.parametrize("examples", [40, pytest.param(2000, marks=pytest.mark.ci)])
def test_entries_of_a_conversion_of_any_content_are_answered(examples: int) -> None:
    @settings(max_examples=examples, derandomize=True, deadline=None)
    @given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
    def answered(content: bytes) -> None:
        _answered(lambda: decode_json(content, ShardDone, "entry"))

    answered()
