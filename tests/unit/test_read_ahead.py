"""The system is asked for exactly the bytes that will be read, batches before they are."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import RecordsError, file_reader, open_records, tar
from equimod.pipelines.records.file_reader import merged
from equimod.pipelines.records.folder import FolderRecords


@pytest.fixture(params=["tar", "beton"])
def records(request: pytest.FixtureRequest, image_tree: Path, tmp_path: Path) -> Path:
    path: Path = tmp_path / f"records.{request.param}"
    if request.param == "tar":
        convert(image_tree, path, ConversionSettings(workers=1))
    else:
        convert_to_beton(open_source(image_tree), path, ConversionSettings(workers=1))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the system is asked to load."""
    found: list[bytes] = []

    def fadvise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        found.append(os.pread(descriptor, length, offset))

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    return found


def test_the_bytes_asked_for_are_those_of_the_images(
    records: Path, asked: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_reader, "_GAP", -1)
    opened = open_records(records)
    opened.will_read(np.array([20, 3, 11]))
    assert asked == [opened.read(position) for position in (3, 11, 20)]
    opened.will_read(np.empty(0, np.int64))


def test_neighbours_are_asked_for_in_one(records: Path, asked: list[bytes]) -> None:
    opened = open_records(records)
    opened.will_read(np.array([7, 5, 6]))
    (run,) = asked
    assert all(opened.read(position) in run for position in (5, 6, 7))
    assert opened.read(4) not in run


def test_requests_cover_the_parts_and_little_more() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 40))
        file, offset, length = rng.integers(0, 3, n), rng.integers(0, 2**22, n), rng.integers(1, 2**16, n)
        offset = np.sort(offset) + np.arange(n) * 2**16  # parts that do not overlap
        requests = list(merged(file, offset, length))
        for f, o, le in zip(file.tolist(), offset.tolist(), length.tolist(), strict=True):
            assert any(f == number and start <= o and o + le <= start + size for number, start, size in requests)
        assert sum(size for *_, size in requests) <= length.sum() + (n - len(requests)) * 2**16
        for (f, start, size), (other, following, _) in pairwise(requests):
            assert f < other or start + size + 2**16 < following


@pytest.mark.parametrize("change", ["cut", "copied over"])
def test_a_file_that_is_cut_or_replaced_under_its_reader_is_an_error_that_names_it(records: Path, change: str) -> None:
    """Mapped, it would end the process."""
    opened = open_records(records)
    opened.read(0)
    [file] = [path for path in (records, records / "shard-000000.tar") if path.is_file()]
    if change == "cut":
        os.truncate(file, 3000)
    else:
        file.write_bytes(bytes(reversed(file.read_bytes())))
    with pytest.raises(RecordsError, match=file.name):
        opened.read(23)
    opened.will_read(np.array([23]))


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.beton")
    with pytest.raises(RecordsError, match=r"x\.beton cannot be read: it is no file, but a pipe"):
        open_records(tmp_path / "x.beton")


def test_a_shard_that_is_gone_is_left_to_read_which_names_it(image_tree: Path, tmp_path: Path) -> None:
    convert(image_tree, tmp_path / "records", ConversionSettings(workers=1, shard_size=10))
    opened = open_records(tmp_path / "records")
    (tmp_path / "records" / "shard-000001.tar").unlink()
    opened.will_read(np.array([3, 11]))
    with pytest.raises(RecordsError, match=r"shard-000001\.tar"):
        opened.read(11)
    assert len(opened.read(3)) == opened.length[3]


def test_a_pipeline_asks_for_every_sample_before_it_is_read(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[int] = set()
    read = FolderRecords.read

    def will_read(records: FolderRecords, positions: NDArray[np.int64]) -> None:
        asked.update(positions.tolist())

    def checked(records: FolderRecords, position: int) -> Any:
        assert position in asked
        return read(records, position)

    monkeypatch.setattr(FolderRecords, "will_read", will_read)
    monkeypatch.setattr(FolderRecords, "read", checked)
    pipeline = build_pipeline(open_records(image_tree), POLICIES["simclr_cifar10"], batch_size=4, seed=0)
    assert sum(len(batch) for batch in pipeline.decoded(0)) == 24
    assert len(asked) == 24


def test_no_more_shards_are_open_than_the_system_allows(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(image_tree, tmp_path / "records", ConversionSettings(workers=1, shard_size=5))
    whole = open_records(tmp_path / "records")
    images = [whole.read(position) for position in range(24)]
    del whole  # which has all five open
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(tar.resource, "getrlimit", lambda kind: (256, 259))
    monkeypatch.setattr(tar.resource, "setrlimit", lambda kind, limit: limits.append(limit))
    records, opened = open_records(tmp_path / "records"), 0
    assert limits == [(259, 259)]  # 5 shards wanted 261
    for position in [0, 6, 12, 18, 23, 0, 6, 1, 23, 12]:
        assert records.read(position) == images[position]
        links = (path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        opened = max(opened, sum("records/shard-" in str(link) for link in links))
    assert opened == 3
