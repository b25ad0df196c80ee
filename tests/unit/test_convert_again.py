"""What a conversion compares before it goes on from an earlier one, or says that it is complete."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_conversion import SHARD_SIZE, contents, truncate

from equimod.pipelines.conversion.convert import DamagedImagesError, convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import RecordsError
from equimod.pipelines.records.tar import SAMPLE


def test_repaired_image_costs_its_own_shard_only(
    image_tree: Path, source: Path, expected: Path, tmp_path: Path
) -> None:
    truncate(source / "class_2" / "007.jpg")
    with pytest.raises(DamagedImagesError):
        convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    shutil.copy2(image_tree / "class_2" / "007.jpg", source / "class_2" / "007.jpg")
    assert convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE)).written == 1
    assert contents(tmp_path / "out") == contents(expected)


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
def test_a_shard_that_changed_since_it_was_written_is_written_again(
    image_tree: Path, source: Path, expected: Path, tmp_path: Path, suffix: str
) -> None:
    truncate(source / "class_2" / "007.jpg")
    with pytest.raises(DamagedImagesError):
        convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    shard = tmp_path / "out" / f"shard-000000{suffix}"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.copy2(image_tree / "class_2" / "007.jpg", source / "class_2" / "007.jpg")
    assert convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE)).written == 2
    assert contents(tmp_path / "out") == contents(expected)


def test_an_entry_that_changed_since_it_was_written_is_not_taken_over(
    image_tree: Path, source: Path, expected: Path, tmp_path: Path
) -> None:
    """Labels stand in it, which are in no other file that is compared."""
    truncate(source / "class_2" / "007.jpg")
    with pytest.raises(DamagedImagesError):
        convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    entry = tmp_path / "out" / ".progress" / "000000.json"
    fields = json.loads(entry.read_text())
    table = np.frombuffer(base64.b64decode(fields["samples"]), SAMPLE).copy()
    table["label"][0] = 2
    fields["samples"] = base64.b64encode(table.tobytes()).decode()
    entry.write_text(json.dumps(fields, indent=1))
    shutil.copy2(image_tree / "class_2" / "007.jpg", source / "class_2" / "007.jpg")
    assert convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE)).written == 2
    assert contents(tmp_path / "out") == contents(expected)


def _spoil(path: Path) -> Callable[[], None]:
    """Damage an image so that its length and its date stay; returns what repairs it."""
    content, found = path.read_bytes(), path.stat()

    def write(new: bytes) -> None:
        path.write_bytes(new)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    write(content[:-20] + bytes(20))
    return lambda: write(content)


def test_what_an_interrupted_conversion_left_out_is_tried_again(
    source: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ConversionSettings(workers=1, shard_size=SHARD_SIZE, on_error="skip")
    repair = _spoil(source / "class_0" / "000.jpg")
    with monkeypatch.context() as patched:
        patched.setattr("equimod.pipelines.conversion.convert.save_manifest", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", settings)
    repair()
    assert convert(source, tmp_path / "out", settings).written == 1
    assert contents(tmp_path / "out") == contents(expected)


def _interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_finished_conversion_says_where_an_image_that_was_left_out_is_sound_now(source: Path, tmp_path: Path) -> None:
    settings = ConversionSettings(workers=1, shard_size=SHARD_SIZE, on_error="skip")
    repair = _spoil(source / "class_0" / "000.jpg")
    assert len(convert(source, tmp_path / "out", settings).manifest.left_out) == 1
    assert convert(source, tmp_path / "out", settings).written == 0
    repair()
    with pytest.raises(RecordsError, match=r"holds records of another source .* --overwrite"):
        convert(source, tmp_path / "out", settings)


def test_other_pictures_of_the_same_lengths_are_not_taken_for_those_that_were_converted(tmp_path: Path) -> None:
    path = tmp_path / "tree" / "a" / "1.bmp"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), "white").save(path)
    convert(tmp_path / "tree", tmp_path / "out", ConversionSettings(workers=1))
    Image.new("RGB", (8, 8), "black").save(path)
    with pytest.raises(RecordsError, match=r"holds records of another source .* --overwrite"):
        convert(tmp_path / "tree", tmp_path / "out", ConversionSettings(workers=1))


def test_shard_that_was_skipped_over_is_not_taken_over_by_fail(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    truncate(source / "class_0" / "000.jpg")
    convert(source, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE, on_error="skip"))
    with pytest.raises(RecordsError, match="--overwrite"):
        convert(source, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE))
