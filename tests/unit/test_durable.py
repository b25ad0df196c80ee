from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from equimod.pipelines.durable import (
    POINTER,
    TEMPORARY_PREFIX,
    FolderBusyError,
    durable_dir,
    durable_file,
    kept,
    locked,
    prune,
    remove_leftovers,
    rotate,
)


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_has_its_old_content_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with durable_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert contents(tmp_path) == ["file"]


def test_file_is_untouched_where_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    writing = durable_file(path)
    writing.__enter__().write(b"new")
    assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_bytes() == b"old"
    assert contents(tmp_path) == ["file"]


def test_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    with durable_dir(tmp_path / "folder") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "sub" / "file").read_text() == "x"
    assert contents(tmp_path) == ["folder"]


def test_folder_does_not_appear_where_the_block_fails(tmp_path: Path) -> None:
    writing = durable_dir(tmp_path / "folder")
    (writing.__enter__() / "file").write_text("x")
    assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert contents(tmp_path) == []


def test_folder_that_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError, match="choose another name"), durable_dir(tmp_path / "folder"):
        pass


def test_full_disk_surfaces_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (durable_file, durable_dir):
        with pytest.raises(OSError, match="No space left"), write(tmp_path / "new"):
            pass
    assert contents(tmp_path) == []


def test_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []

    def record(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), final.exists()))

    monkeypatch.setattr(os, "fsync", record)
    final = tmp_path / "file"
    with durable_file(final):
        pass
    (temporary, before), (folder, after) = synced
    assert temporary.parent == tmp_path
    assert not before
    assert (folder, after) == (tmp_path, True)

    synced.clear()
    final = tmp_path / "folder"
    with durable_dir(final) as inside:
        (inside / "x").touch()
    assert {path.name for path, there in synced if not there} == {inside.name, "x"}
    assert [(path, there) for path, there in synced if there] == [(tmp_path, True)]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".partial-1").write_text("x")
    (tmp_path / ".partial-2").mkdir()
    (tmp_path / ".partial-2" / "file").write_text("x")
    (tmp_path / "kept").write_text("x")
    remove_leftovers(tmp_path)
    assert contents(tmp_path) == ["kept"]


@pytest.mark.parametrize("write", [durable_file, durable_dir])
def test_what_a_killed_process_left_of_the_same_path_goes_and_what_is_held_stays(write: Any, tmp_path: Path) -> None:
    with write(tmp_path / "a"):
        [held] = contents(tmp_path)
        left, of_another = tmp_path / f"{held[:-1]}x", tmp_path / ".partial-00000000-1"
        for path in (left, of_another):
            path.touch() if write is durable_file else path.mkdir()
        other = write(tmp_path / "a")
        other.__enter__()
        assert not left.exists()
        assert {held, of_another.name} < set(contents(tmp_path))
        other.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert contents(tmp_path) == [of_another.name, "a"]


def write_checkpoint(folder: Path, name: str) -> None:
    with durable_dir(folder / name) as inside:
        (inside / "a").write_text(name)
        (inside / "b").write_text(name)
    rotate(folder, name)


def test_two_newest_are_kept(tmp_path: Path) -> None:
    for name in ("9", "10", "11"):
        write_checkpoint(tmp_path, name)
    assert [path.name for path in kept(tmp_path)] == ["11", "10"]
    assert contents(tmp_path) == ["10", "11", "newest"]


def test_order_is_that_of_writing_after_going_back_to_an_older_one(tmp_path: Path) -> None:
    for name in ("10", "20", "15"):
        write_checkpoint(tmp_path, name)
    assert [path.name for path in kept(tmp_path)] == ["15", "20"]


def test_prune_removes_what_the_pointer_does_not_name(tmp_path: Path) -> None:
    for name in ("10", "20"):
        with durable_dir(tmp_path / name):
            pass
    (tmp_path / POINTER).write_text("10")
    assert kept(tmp_path) == [tmp_path / "10"]
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", POINTER]


def test_without_a_pointer_every_complete_folder_is_kept(tmp_path: Path) -> None:
    for name in ("10", "20"):
        with durable_dir(tmp_path / name):
            pass
    (tmp_path / f"{TEMPORARY_PREFIX}30").mkdir()
    prune(tmp_path)
    assert kept(tmp_path) == [tmp_path / "20", tmp_path / "10"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(FolderBusyError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
