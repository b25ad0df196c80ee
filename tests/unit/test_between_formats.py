"""From format to format: nothing is lost, and what is finished, interrupted or locked stays so."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conversions import converted, same_samples
from PIL import Image
from small_conversion import contents

from equimod.pipelines.conversion import open_source, unfinished_beton
from equimod.pipelines.conversion.check import Shrink
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.conversion.unfinished_beton import parts_folder
from equimod.pipelines.durable import locked
from equimod.pipelines.records import open_records
from equimod.pipelines.records.beton import BetonRecords
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.records.tar import TarRecords


@pytest.mark.parametrize("raw", [False, True])
def test_from_format_to_format_and_back_is_the_same_to_the_byte(raw: bool, image_tree: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    converted(image_tree, first, shard_size=10)
    if raw:  # pixels in a .beton become PNG files in shards, and these the same pixels
        converted(first, tmp_path / "pixels.beton", raw=True)
        first = tmp_path / "png"
        converted(tmp_path / "pixels.beton", first, shard_size=10)
    beton = tmp_path / "first.beton"
    assert same_samples(converted(first, beton), open_records(first)) or raw
    converted(beton, tmp_path / "second", shard_size=10)
    converted(tmp_path / "second", tmp_path / "second.beton")
    assert contents(tmp_path / "second") == contents(first)
    assert (tmp_path / "second.beton").read_bytes() == beton.read_bytes()


def test_what_was_left_out_stays_known_from_format_to_format(image_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(image_tree, tmp_path / "tree")
    (tmp_path / "tree" / "class_1" / "003.jpg").write_bytes(b"damaged")
    converted(tmp_path / "tree", tmp_path / "records", on_error="skip")
    beton = converted(tmp_path / "records", tmp_path / "r.beton")
    assert isinstance(beton, BetonRecords)
    assert beton.trailer is not None
    assert [note.name for note in beton.trailer.manifest.left_out] == ["class_1/003.jpg"]
    assert 11 not in beton.index
    converted(tmp_path / "r.beton", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "records")


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_smaller_copies_keep_the_original_size_and_small_images_their_bytes(
    output: str, image_tree: Path, tmp_path: Path
) -> None:
    full = converted(image_tree, tmp_path / f"full-{output}")
    small = converted(image_tree, tmp_path / output, shrink=Shrink(60, 95))
    assert np.array_equal(small.size, full.size)
    assert small.stored_size.max() == 60
    for position in range(len(full)):
        same = bytes(small.read(position)) == bytes(full.read(position))
        assert same == (full.size[position].max() <= 60)
        copy, original = (Image.open(io.BytesIO(bytes(r.read(position)))) for r in (small, full))
        assert copy.mode == original.mode
        assert copy.size == tuple(small.stored_size[position])
        expected = np.asarray(original.resize(copy.size, Image.Resampling.LANCZOS), dtype=float)
        assert np.abs(np.asarray(copy, dtype=float) - expected).mean() < 6


@pytest.mark.parametrize("raw", [False, True])
def test_the_last_pass_goes_on_where_it_was_interrupted(
    raw: bool, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = converted(image_tree, tmp_path / "tar")
    converted(tmp_path / "tar", tmp_path / "whole.beton", raw=raw)
    monkeypatch.setattr(unfinished_beton, "KEPT_EVERY", 2000)
    read, original, stop = list[int](), TarRecords.read, [17]

    def some(self: TarRecords, position: int) -> bytes:
        read.append(position)
        if position == stop[0]:
            raise OSError("killed")
        return original(self, position)

    monkeypatch.setattr(TarRecords, "read", some)
    output, source = tmp_path / "r.beton", open_source(tmp_path / "tar")
    settings = ConversionSettings(workers=1, raw=raw)
    with pytest.raises(RecordsError, match="run the same command again to continue"):
        convert_to_beton(source, output, settings)
    assert not output.exists()
    with (parts_folder(output) / "beton.rows").open("ab") as rows:
        rows.write(b"cut")  # as a kill may leave it
    with (parts_folder(output) / "beton.content").open("ab") as content:
        content.write(b"more")
    stop[0] = -1
    read.clear()
    convert_to_beton(source, output, settings)
    assert 5 < read[0] <= 17
    assert read == list(range(read[0], 24))
    assert output.read_bytes() == (tmp_path / "whole.beton").read_bytes()
    assert not parts_folder(output).exists()
    assert len(records) == 24


@pytest.mark.parametrize("damage", ["content", "rows", "other images", "raw"])
def test_the_last_pass_begins_anew_where_what_is_left_is_not_its_own(
    damage: str, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished_beton, "KEPT_EVERY", 2000)
    converted(image_tree, tmp_path / "tar")
    original = TarRecords.read

    def some(self: TarRecords, position: int) -> bytes:
        if position == 17:
            raise OSError("killed")
        return original(self, position)

    source = open_source(tmp_path / "tar")
    with monkeypatch.context() as patch:
        patch.setattr(TarRecords, "read", some)
        with pytest.raises(RecordsError):
            convert_to_beton(source, tmp_path / "r.beton", ConversionSettings(workers=1))
    if damage == "content":
        (parts_folder(tmp_path / "r.beton") / "beton.content").write_bytes(b"short")
    if damage == "rows":
        (parts_folder(tmp_path / "r.beton") / "beton.rows").unlink()
        (parts_folder(tmp_path / "r.beton") / "beton.content").write_bytes(b"x" * 2**24)
    if damage == "other images":
        shutil.copytree(image_tree, tmp_path / "tree")
        shutil.copy(tmp_path / "tree" / "class_0" / "001.jpg", tmp_path / "tree" / "class_0" / "000.jpg")
        shutil.rmtree(tmp_path / "tar")
        converted(tmp_path / "tree", tmp_path / "tar")
    expected = converted(tmp_path / "tar", tmp_path / "whole.beton", raw=damage == "raw")
    found = converted(tmp_path / "tar", tmp_path / "r.beton", raw=damage == "raw")
    assert (tmp_path / "r.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()
    assert len(found) == len(expected)


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_a_finished_output_is_complete_and_another_one_is_refused(
    output: str, image_tree: Path, tmp_path: Path
) -> None:
    converted(image_tree, tmp_path / output)
    source = open_source(image_tree)
    run = convert_to_beton if output.endswith("beton") else convert
    assert run(source, tmp_path / output, ConversionSettings(workers=1)).written == 0
    with pytest.raises(RecordsError, match="--overwrite"):
        run(source, tmp_path / output, ConversionSettings(workers=1, shrink=Shrink(60, 90)))
    assert (
        run(source, tmp_path / output, ConversionSettings(workers=1, shrink=Shrink(60, 90), overwrite=True)).written > 0
    )
    assert run(source, tmp_path / output, ConversionSettings(workers=1, shrink=Shrink(60, 90))).written == 0
    with pytest.raises(RecordsError, match="--overwrite"):
        run(source, tmp_path / output, ConversionSettings(workers=1))


def test_a_finished_beton_of_pixels_is_not_one_of_jpegs(image_tree: Path, tmp_path: Path) -> None:
    converted(image_tree, tmp_path / "pixels.beton", raw=True)
    source = open_source(image_tree)
    with pytest.raises(RecordsError, match="--overwrite"):
        convert_to_beton(source, tmp_path / "pixels.beton", ConversionSettings(workers=1))
    assert convert_to_beton(source, tmp_path / "pixels.beton", ConversionSettings(workers=1, raw=True)).written == 0


def test_a_beton_that_cannot_be_written_is_named_itself(image_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "r.beton"
    with pytest.raises(RecordsError, match=f"^{output} cannot be written: Not a directory"):
        converted(image_tree, output)


def test_shards_of_jpegs_are_not_those_of_the_same_images_pixels(image_tree: Path, tmp_path: Path) -> None:
    converted(image_tree, tmp_path / "pixels.beton", raw=True)
    converted(image_tree, tmp_path / "records")
    with pytest.raises(RecordsError, match="--overwrite"):
        converted(tmp_path / "pixels.beton", tmp_path / "records")
    converted(tmp_path / "pixels.beton", tmp_path / "png")
    assert convert(open_source(tmp_path / "pixels.beton"), tmp_path / "png", ConversionSettings(workers=1)).written == 0


@pytest.mark.parametrize("source", ["tree", "records"])
def test_a_beton_is_written_by_one_process_at_a_time(source: str, image_tree: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    converted(image_tree, records)
    output = tmp_path / "r.beton"
    parts_folder(output).mkdir()
    with locked(parts_folder(output)), pytest.raises(RecordsError, match="another process"):
        converted(records if source == "records" else image_tree, output)
    assert not output.exists()
    converted(records if source == "records" else image_tree, output)
    assert not parts_folder(output).exists()


@pytest.mark.parametrize("stage", ["shards", "file", "removal"])
def test_an_interrupted_beton_goes_on_to_the_same_bytes(
    stage: str, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(image_tree, tmp_path / "whole.beton")
    place = {
        "shards": "equimod.pipelines.conversion.convert._finish",
        "file": "equimod.pipelines.conversion.beton_writer._descriptors",
        "removal": "equimod.pipelines.conversion.convert_beton.shutil",
    }[stage]
    output = tmp_path / "cut.beton"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(place, SimpleNamespace(rmtree=interrupt) if stage == "removal" else interrupt)
        with pytest.raises(KeyboardInterrupt):
            converted(image_tree, output)
    assert output.exists() == (stage == "removal")
    assert parts_folder(output).exists()
    assert same_samples(converted(image_tree, output), open_records(tmp_path / "whole.beton"))
    assert not parts_folder(output).exists()
    assert output.read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_records_say_how_small_their_copies_are_whatever_is_asked_later(image_tree: Path, tmp_path: Path) -> None:
    converted(image_tree, tmp_path / "50", shrink=Shrink(50, 90))
    for side, said in ((80, 50), (40, 40)):
        records = converted(tmp_path / "50", tmp_path / str(side), shrink=Shrink(side, 80))
        assert isinstance(records, TarRecords)
        assert (records.manifest.max_side, records.stored_size.max()) == (said, said)


def test_a_file_of_pixels_stays_one(image_tree: Path, tmp_path: Path) -> None:
    converted(image_tree, tmp_path / "a.beton", raw=True)
    converted(tmp_path / "a.beton", tmp_path / "b.beton")
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
