"""Files of our own that changed are noticed: any byte of a list of digests, and of the files that it lists."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from equimod.pipelines.stored import DIGESTS, DamagedFileError, Digests, decode_json, read_json


@dataclass(frozen=True)
class Example:
    name: str
    numbers: tuple[int, ...]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(bytes(range(100)))
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / DIGESTS).write_bytes(Digests.of(tmp_path, ["b.json", "a.bin"]).pack())
    return tmp_path


def test_files_as_they_were_pass(folder: Path) -> None:
    Digests.read(folder / DIGESTS).check(folder)


def test_each_flipped_bit_is_noticed(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(DamagedFileError, match=path.name):
                Digests.read(folder / DIGESTS).check(folder)
        path.write_bytes(content)


@pytest.mark.parametrize("length", [0, 50, 101])
def test_another_length_is_noticed(folder: Path, length: int) -> None:
    (folder / "a.bin").write_bytes(bytes(length))
    with pytest.raises(DamagedFileError, match=r"a\.bin is damaged"):
        Digests.read(folder / DIGESTS).check(folder)


def test_a_missing_file_and_one_that_is_not_listed_are_named(folder: Path) -> None:
    (folder / "a.bin").unlink()
    (folder / "c.bin").write_bytes(b"")
    digests = Digests.read(folder / DIGESTS)
    with pytest.raises(DamagedFileError, match=r"a\.bin cannot be read: No such file"):
        digests.check(folder)
    with pytest.raises(DamagedFileError, match=r"c\.bin is damaged"):
        digests.check(folder, ["c.bin"])
    digests.check(folder, ["b.json"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\0",
        b"NaN",
        b'{"name": "x"}',
        b'{"name": 1, "numbers": []}',
        b'{"name": "\xe9", "numbers": []}',
        b'{"name": "x", "numbers": [1.5]}',
        b'{"name": "x", "numbers": [1]} {}',
        b"[" * 100_000,
        b'{"skipped": ' + b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:32]),
)
def test_json_of_another_form_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json", Example)


def test_json_becomes_what_it_describes() -> None:
    assert decode_json(b'{"numbers": [1, 2], "name": "x", "more": 1}', Example, "") == Example("x", (1, 2))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"x\.json cannot be read: No such file"):
        read_json(tmp_path / "x.json", Example)


def test_names_that_are_not_utf_8_come_back() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")
    assert decode_json(json.dumps([name]).encode(), list[str], "") == [name]
