"""Records at a URL: the same samples, fetched once, whatever the network, the server and the disk do meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from commands import call
from conversions import converted, same_samples

from equimod.benchmarks.growth.file_server import FileServer, served, slow
from equimod.pipelines import progress
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion import open_source
from equimod.pipelines.images import open_images, survey
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records, remote
from equimod.pipelines.records.protocol import RecordsError, fingerprint
from equimod.tools import verify


@pytest.fixture
def server(image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Records of both formats behind a server, an empty folder for blocks, blocks of 2,000 bytes, little patience."""
    monkeypatch.setenv("EQUIMOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EQUIMOD_CACHE_GIB", raising=False)
    monkeypatch.setattr(remote, "BLOCK", 2000)
    monkeypatch.setattr(remote, "WAIT_SECONDS", 0.001)
    converted(image_tree, tmp_path / "served" / "records", shard_size=10)
    converted(image_tree, tmp_path / "served" / "r.beton")
    with served(tmp_path / "served") as files:
        yield files


FORMS = ["records", "r.beton"]


def _at(server: FileServer, form: str) -> Path:
    return Path(f"{server.url}/{form}")  # which loses a slash, as that of --data does


def _blocks(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "remote").glob("*/*.[0-9]*") if path.name[0] != ".")


@pytest.mark.parametrize("form", FORMS)
def test_they_are_what_they_are_in_place(form: str, server: FileServer) -> None:
    here, there = open_records(server.folder / form), open_records(_at(server, form))
    assert same_samples(there, here)
    assert fingerprint(there) == fingerprint(here)
    assert [there.source(position) for position in range(24)] == [here.source(position) for position in range(24)]
    assert there.name(3) == here.name(3)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_fetched_is_not_fetched_again(form: str, server: FileServer) -> None:
    first = open_records(_at(server, form))
    images = [bytes(first.read(position)) for position in range(24)]
    total = sum(len(image) for image in images)
    assert server.sent < 1.3 * sum(path.stat().st_size for path in server.folder.rglob("*") if form in str(path))
    assert server.sent > total
    before = len(server.asked)
    again = open_records(_at(server, form))
    assert [bytes(again.read(position)) for position in range(24)] == images
    assert {path for path, _ in server.asked[before:]} <= {"/records/manifest.json"}


def test_only_what_is_used_is_fetched(server: FileServer) -> None:
    records = open_records(_at(server, "records"))
    server.asked.clear()
    records.read(0)
    assert {path for path, _ in server.asked} == {"/records/shard-000000.tar"}
    assert len(server.asked) <= -(-int(records.length[0]) // 2000) + 1


def test_what_will_be_read_comes_meanwhile_and_once(server: FileServer) -> None:
    records = open_records(_at(server, "records"))
    server.asked.clear()
    server.fault = slow(0.05)
    records.will_read(np.arange(24))
    records.will_read(np.arange(24))
    assert [len(bytes(records.read(position))) for position in range(24)] == records.length.tolist()
    assert len(server.asked) == len(set(server.asked))


def test_processes_that_want_the_same_fetch_it_once(server: FileServer) -> None:
    ranks = [open_records(_at(server, "records")) for _ in range(4)]
    server.asked.clear()
    server.fault = slow(0.05)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rank: bytes(rank.read(3)), ranks))
    assert len(set(found)) == 1
    assert len(server.asked) == len(set(server.asked))


@pytest.mark.parametrize("form", FORMS)
def test_a_pipeline_gives_the_same_batches(form: str, server: FileServer) -> None:
    def batches(path: Path) -> list[np.ndarray]:
        pipeline = build_pipeline(open_records(path), POLICIES["simclr_cifar10"], batch_size=8, seed=1, workers=2)
        return [batch.images.numpy().copy() for batch in pipeline.epoch(0)]

    for one, other in zip(batches(_at(server, form)), batches(server.folder / form), strict=True):
        np.testing.assert_array_equal(one, other)


class _Sometimes:
    """A fault of the first answers about each block."""

    def __init__(self, times: int, content: bytes | None) -> None:
        self._times, self._content, self._count = times, content, dict[tuple[str, int], int]()

    def __call__(self, path: str, start: int, content: bytes) -> bytes | None:
        count = self._count[path, start] = self._count.get((path, start), 0) + 1
        if count > self._times:
            return content
        return None if self._content is None else (self._content * len(content))[: len(content)]


def test_cut_connections_are_made_again(server: FileServer) -> None:
    here = open_records(server.folder / "records")
    server.fault = _Sometimes(2, None)
    assert same_samples(open_records(_at(server, "records")), here)


def test_a_server_that_stays_away_is_one_line(server: FileServer) -> None:
    records = open_records(_at(server, "records"))
    server.fault = _Sometimes(10**6, None)
    with pytest.raises(RecordsError, match=r"shard-000000\.tar cannot be fetched: .*; check the network and run"):
        records.read(0)


def test_a_server_that_sends_nothing_is_asked_again(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.2)
    waits = [1.0]

    def silent_once(path: str, start: int, content: bytes) -> bytes:
        return slow(waits.pop())(path, start, content) if waits else content

    records = open_records(_at(server, "records"))
    server.fault = silent_once
    assert len(bytes(records.read(0))) == records.length[0]
    assert waits == []


@pytest.mark.parametrize("form", FORMS)
def test_wrong_bytes_are_fetched_again_and_refused_where_they_stay(form: str, server: FileServer) -> None:
    here, records = open_records(server.folder / form), open_records(_at(server, form))
    server.fault = _Sometimes(1, b"x")
    assert bytes(records.read(12)) == bytes(here.read(12))
    server.fault = _Sometimes(10**6, b"x")
    with pytest.raises(RecordsError, match=r"is damaged: its bytes do not have their checksum"):
        records.read(20)


def test_a_block_that_was_damaged_here_is_fetched_again(server: FileServer, tmp_path: Path) -> None:
    here, records = open_records(server.folder / "records"), open_records(_at(server, "records"))
    records.read(3)
    for path in _blocks(tmp_path):
        path.write_bytes(bytes(path.stat().st_size))
    assert bytes(records.read(3)) == bytes(here.read(3))
    for path in _blocks(tmp_path):
        path.write_bytes(b"")
    assert bytes(records.read(3)) == bytes(here.read(3))


def test_the_folder_stays_within_its_limit(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LOOK", 2)
    monkeypatch.setattr(remote, "_room", remote._Room())
    monkeypatch.setenv("EQUIMOD_CACHE_GIB", str(20_000 / 2**30))
    here, records = open_records(server.folder / "records"), open_records(_at(server, "records"))
    for position in [*range(24), *range(24)]:
        assert bytes(records.read(position)) == bytes(here.read(position))
        assert sum(path.stat().st_size for path in _blocks(tmp_path)) <= 20_000
    assert int(here.length.sum()) > 30_000


def test_what_was_asked_for_longest_ago_goes_first(server: FileServer, tmp_path: Path) -> None:
    records = open_records(_at(server, "records"))
    for position in range(24):
        records.read(position)
    blocks = _blocks(tmp_path)
    for date, path in enumerate(blocks):
        os.utime(path, (date, date))
    records.will_read(np.array([0]))
    asked = [path for path in blocks if path.stat().st_mtime > len(blocks)]
    assert asked == blocks[: len(asked)] != []
    assert remote._room.make(blocks[0], half=True)
    left = _blocks(tmp_path)
    assert left == [*asked, *blocks[len(blocks) - len(left) + len(asked) :]]
    assert len(blocks) / 3 < len(left) < len(blocks) * 2 / 3


def test_a_limit_that_is_no_number_is_one_line(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_room", remote._Room())
    monkeypatch.setenv("EQUIMOD_CACHE_GIB", "much")
    with pytest.raises(RecordsError, match=r"EQUIMOD_CACHE_GIB='much' is no number"):
        open_records(_at(server, "records"))


def test_a_full_disk_makes_room_and_says_so_where_there_is_none(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = open_records(_at(server, "records"))
    for position in range(5):
        records.read(position)
    before = len(_blocks(tmp_path))
    full, write = [True], remote._write

    def refuse_once(path: Path, content: bytes) -> None:
        if full.pop():
            full.append(False)
            raise OSError(errno.ENOSPC, "No space left on device")
        full.append(False)
        write(path, content)

    monkeypatch.setattr(remote, "_write", refuse_once)
    assert len(bytes(records.read(20))) == records.length[20]
    assert len(_blocks(tmp_path)) < before

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "_write", refuse)
    with pytest.raises(RecordsError, match=r"cannot keep what is fetched: No space left.* EQUIMOD_CACHE=FOLDER"):
        records.read(10)


def test_a_file_of_another_date_is_fetched_anew(server: FileServer) -> None:
    open_records(_at(server, "r.beton")).read(0)
    before = len(server.asked)
    open_records(_at(server, "r.beton")).read(0)
    assert len(server.asked) == before
    os.utime(server.folder / "r.beton")
    open_records(_at(server, "r.beton")).read(0)
    assert len(server.asked) > before


def test_data_that_was_replaced_is_fetched_anew(server: FileServer, image_tree: Path, tmp_path: Path) -> None:
    old = open_records(_at(server, "records")), open_records(_at(server, "r.beton"))
    for records in old:
        records.read(0)
    shutil.copytree(image_tree, tmp_path / "tree")
    shutil.copy(image_tree / "class_0" / "001.jpg", tmp_path / "tree" / "class_0" / "000.jpg")
    for form in FORMS:
        shutil.rmtree(server.folder / form) if form == "records" else (server.folder / form).unlink()
        here = converted(tmp_path / "tree", server.folder / form, shard_size=10)
        assert same_samples(open_records(_at(server, form)), here)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("{}/nothing", r"nothing/manifest\.json is not there; .* folder of records or of a \.beton file"),
        ("{}/nothing.beton", r"nothing\.beton is not there"),
        ("s3://bucket/records", "s3fs"),
        ("nonsense://x/y", "cannot be reached"),
        ("http://127.0.0.1:1/records", "cannot be fetched"),
    ],
)
def test_what_is_no_records_is_one_line(url: str, said: str, server: FileServer) -> None:
    with pytest.raises(RecordsError, match=said) as caught:
        open_images(Path(url.format(server.url)))
    assert "\n" not in str(caught.value)


def test_a_wait_is_told_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(remote, "WAIT_SECONDS", 0.1)
    with pytest.raises(RecordsError):
        open_images(Path("http://127.0.0.1:1/records"))
    assert capsys.readouterr().err == "opening http://127.0.0.1:1/records: 0 files\n"


def test_they_are_surveyed_converted_and_verified_as_others(server: FileServer, tmp_path: Path) -> None:
    path = _at(server, "records")
    assert survey(path)[0] == 24
    assert same_samples(converted(path, tmp_path / "copy", shard_size=10), open_records(server.folder / "records"))
    assert call(verify.main, path).code == 0
    assert len(open_source(path).items) == 24


def _url(path: str) -> str | None:
    return remote.url_of(Path(path))


def test_paths_are_no_urls() -> None:
    assert _url("s3://bucket/a b/{x}") == "s3://bucket/a b/{x}"
    assert _url("https://host/r.beton") == "https://host/r.beton"
    assert [_url(path) for path in ("records", "/data/records", "C:/records", "a/s3:/b", "./s3:/b")][:4] == [None] * 4
