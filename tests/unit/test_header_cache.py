"""Headers of many image files are read once, and again where a file is not the one that it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from equimod.pipelines.records import RecordsError, archive, header_cache, open_records
from equimod.pipelines.records.archive import Member, members
from equimod.pipelines.records.folder import FolderRecords
from equimod.train.distributed import DistInfo, first_on_each_node


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIMOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(header_cache, "FEWEST", 10)
    return tmp_path / "cache" / "headers"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose headers are read."""
    found: list[str] = []
    original = header_cache._read

    def record(pool: object, paths: list[Path], *rest: object) -> np.ndarray:
        found.extend("/".join(path.parts[-2:]) for path in paths)
        return original(pool, paths, *rest)

    monkeypatch.setattr(header_cache, "_read", record)
    return found


def _columns(records: FolderRecords) -> list[list[int]]:
    return [np.asarray(getattr(records, name)).tolist() for name in ("size", "length", "checksum", "changed", "label")]


def test_a_second_opening_reads_no_header_and_finds_the_same(source: Path, read: list[str]) -> None:
    first = _columns(open_records(source))
    assert len(read) == 24
    assert _columns(open_records(source)) == first
    assert len(read) == 24


def _grow(source: Path) -> list[str]:
    path = source / "class_0" / "003.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    return ["class_0/003.jpg"]


def _swap_contents_keeping_length_and_date(source: Path) -> list[str]:
    path = source / "class_0" / "003.jpg"
    content, found = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    return ["class_0/003.jpg"]


def _exchange(source: Path) -> list[str]:
    a, b, c = (source / "class_1" / name for name in ("001.jpg", "002.jpg", "c"))
    a.rename(c)
    b.rename(a)
    c.rename(b)
    return ["class_1/001.jpg", "class_1/002.jpg"]


def _add_and_remove(source: Path) -> list[str]:
    shutil.copy(source / "class_2" / "001.jpg", source / "class_2" / "0005.jpg")
    (source / "class_1" / "004.jpg").unlink()
    return ["class_2/0005.jpg"]


@pytest.mark.parametrize("change", [_grow, _swap_contents_keeping_length_and_date, _exchange, _add_and_remove])
def test_a_file_that_changed_is_read_again_and_no_other(
    change: Callable[[Path], list[str]], source: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_records(source)
    read.clear()
    changed = change(source)
    found = _columns(open_records(source))
    assert read == changed
    monkeypatch.setattr(header_cache, "FEWEST", 1000)
    assert found == _columns(open_records(source))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other form"])
def test_a_damaged_cache_is_made_anew(damage: str, source: Path, read: list[str], cache: Path) -> None:
    first = _columns(open_records(source))
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    file.write_bytes({"flipped": content, "cut": content[:90], "empty": b"", "other form": b"x" + content}[damage])
    assert _columns(open_records(source)) == first
    assert len(read) == 48
    assert _columns(open_records(source)) == first
    assert len(read) == 48


def test_few_files_are_not_kept(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "FEWEST", 25)
    open_records(source)
    assert not cache.exists()


def test_a_home_that_cannot_be_written_is_no_error(source: Path, read: list[str], cache: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("no folder")
    assert len(open_records(source)) == len(open_records(source)) == 24
    assert len(read) == 48


def test_a_file_that_is_gone_is_named(source: Path) -> None:
    open_records(source)
    listed = open_records(source)
    assert len(listed) == 24
    (source / "class_0" / "000.jpg").unlink()
    (source / "class_0" / "000.jpg").symlink_to("nowhere")
    with pytest.raises(RecordsError, match=r"000\.jpg cannot be read"):
        open_records(source)


def test_the_first_rank_of_a_node_goes_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("equimod.train.distributed.barrier", lambda _: told.append("barrier"))

    def make() -> int:
        told.append("made")
        return 3

    device = torch.device("cpu")
    assert first_on_each_node(make, DistInfo(4, 0, 8, device)) == 3
    assert first_on_each_node(make, DistInfo(5, 1, 8, device)) == 3
    assert told == ["made", "barrier", "barrier", "made"]
    with pytest.raises(ZeroDivisionError):
        first_on_each_node(lambda: 1 // 0, DistInfo(4, 0, 8, device))
    assert told[-1] == "barrier"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Archives that are listed."""
    found: list[Path] = []
    original = archive._members

    def record(path: Path) -> Iterator[Member]:
        found.append(path)
        return original(path)

    monkeypatch.setattr(archive, "_members", record)
    return found


@pytest.fixture(params=["tar", "zip"])
def packed(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    return Path(shutil.make_archive(str(tmp_path / "packed"), request.param, source))


def test_a_large_archive_is_listed_once(packed: Path, listed: list[Path]) -> None:
    first = members([packed, packed])
    assert listed == [packed]
    assert members([packed]) == first[:1] == first[1:]
    assert {type(member.deflated) for member in first[0]} == {bool}
    assert listed == [packed]


def test_an_archive_that_was_replaced_is_listed_again(packed: Path, source: Path, listed: list[Path]) -> None:
    before = members([packed])
    (source / "class_0" / "000.jpg").unlink()
    shutil.make_archive(str(packed.with_suffix("")), packed.suffix[1:], source)
    after = members([packed])
    assert len(listed) == 2
    assert {member.name for member in before[0]} - {member.name for member in after[0]} == {"class_0/000.jpg"}


def test_a_damaged_listing_is_made_anew(packed: Path, cache: Path, listed: list[Path]) -> None:
    first = members([packed])
    [kept] = (cache.parent / "listings").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert members([packed]) == first
    assert len(listed) == 2


def test_a_small_archive_is_not_kept(
    packed: Path, cache: Path, listed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_cache, "FEWEST", 1000)
    assert members([packed]) == members([packed])
    assert len(listed) == 2
    assert not (cache.parent / "listings").exists()


def test_an_archive_that_cannot_be_listed_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(RecordsError, match=r"no\.tar is no tar or zip archive"):
            members([tmp_path / "no.tar"])
    with pytest.raises(RecordsError, match=r"gone\.tar cannot be read"):
        members([tmp_path / "gone.tar"])
