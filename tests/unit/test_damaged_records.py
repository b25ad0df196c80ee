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

from equimod.benchmarks.campaigns import toys
from equimod.benchmarks.campaigns.flips import everything, record_flips
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.conversion.shard_task import ShardDone
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.stored import DamagedFileError, FileDigest, decode_json

SETTINGS = ConversionSettings(workers=1, shard_size=4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of six small pictures, as shards and as .beton files of JPEGs and of pixels."""
    folder = tmp_path_factory.mktemp("small")
    toys.records(folder)
    return folder


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    trials = list(record_flips(tmp_path, 0, 90))
    assert [trial.fault for trial in trials if trial.fault] == []
    assert sum(trial.outcome == "refused" for trial in trials) > 85  # padding of a .beton alone is nobody's


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
        _answered(lambda: everything(records))
        if isinstance(fields["files"], dict):
            try:
                _reseal(records)
            except (OSError, TypeError, ValueError):  # of files that this test cannot seal
                return
            _answered(lambda: everything(records))

    answered()


@pytest.mark.parametrize("examples", [40, pytest.param(2000, marks=pytest.mark.ci)])
def test_entries_of_a_conversion_of_any_content_are_answered(examples: int) -> None:
    @settings(max_examples=examples, derandomize=True, deadline=None)
    @given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
    def answered(content: bytes) -> None:
        _answered(lambda: decode_json(content, ShardDone, "entry"))

    answered()
