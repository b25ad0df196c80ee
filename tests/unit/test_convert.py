"""The converter: what it writes, makes of damage and refuses. Kills: tests/system/test_convert.py."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image
from small_conversion import SHARD_SIZE, contents, truncate

from equimod.pipelines.conversion.convert import DamagedImagesError, convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.folder import scan_tree
from equimod.pipelines.records.manifest import Remark
from equimod.pipelines.records.tar import load_manifest
from equimod.tools import convert_imagenet


def run(source: Path, output: Path, *options: str) -> tuple[int, str]:
    """Exit code and what was printed."""
    answer = call(convert_imagenet.main, source, output, "--shard-size", SHARD_SIZE, *options)
    return answer.code, answer.out + answer.err


def test_tar_holds_the_bytes_of_the_source_in_webdataset_groups(image_tree: Path, expected: Path) -> None:
    tree = scan_tree(image_tree)
    index = 0
    for shard in sorted(expected.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]
        for key, group in groupby(members, lambda member: member[0].split(".")[0]):
            assert key == f"{index:09d}"
            sample = {name.split(".")[1]: content for name, content in group}
            assert sample["jpg"] == tree.path(index).read_bytes()
            assert int(sample["cls"]) == tree.labels[index]
            with Image.open(tree.path(index)) as image:
                width, height = image.size
            assert json.loads(sample["json"]) == {
                "index": index,
                "label": tree.labels[index],
                "width": width,
                "height": height,
                "name": tree.names[index],
            }
            index += 1
    assert index == len(tree.names)


def test_dali_index_points_at_every_member(expected: Path) -> None:
    for shard in sorted(expected.glob("*.tar")):
        content = shard.read_bytes()
        first, *lines = shard.with_suffix(".idx").read_text().splitlines()
        assert first == f"v1.2 {len(lines)}"
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for line in lines:
            fields = line.split(" ")
            entries = [fields[at : at + 4] for at in range(0, len(fields), 4)]
            assert [entry[0] for entry in entries] == ["jpg", "cls", "json"]
            for extension, offset, size, name in entries:
                assert name.split(".", 1)[1] == extension
                assert content[int(offset) : int(offset) + int(size)] == members.pop(name)
        assert not members


def test_manifest_counts_what_is_there(expected: Path) -> None:
    manifest = load_manifest(expected)
    assert [shard.samples for shard in manifest.shards] == [5, 5, 5, 5, 4]
    assert (manifest.samples, manifest.classes, manifest.source) == (24, 3, "source")
    assert manifest.total_bytes == sum(path.stat().st_size for path in expected.glob("*.tar"))
    assert (manifest.remarks, manifest.left_out) == ((), ())
    size = open_records(expected).size
    assert manifest.image_size["width"] == {
        "min": size[:, 0].min(),
        "mean": round(size[:, 0].mean(), 2),
        "max": size[:, 0].max(),
    }
    assert str(expected.parent) not in (expected / "manifest.json").read_text()


def zero(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])


def unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def no_image(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated_png(path: Path) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:-3000])


@pytest.mark.parametrize("damage", [truncate, zero, unreadable, no_image, empty, truncated_png])
def test_damaged_image_stops_or_is_left_out(source: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    output = tmp_path / "out"
    damage(source / "class_1" / "002.jpg")
    with pytest.raises(DamagedImagesError) as caught:
        convert(source, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    assert [(note.index, note.name) for note in caught.value.damaged] == [(10, "class_1/002.jpg")]
    assert caught.value.damaged[0].reason
    assert not (output / "shard-000002.tar").exists()

    manifest = convert(source, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE, on_error="skip")).manifest
    assert manifest.left_out == tuple(caught.value.damaged)
    records = open_records(output)
    assert records.index.tolist() == [*range(10), *range(11, 24)]
    assert records.label.tolist() == [0] * 8 + [1] * 7 + [2] * 8
    assert bytes(records.read(10)) == (source / "class_1" / "003.jpg").read_bytes()


def test_command_lists_damaged_images_and_the_way_on(source: Path, tmp_path: Path) -> None:
    for number in range(3):
        truncate(source / "class_0" / f"00{number}.jpg")
    code, printed = run(source, tmp_path / "out", "--workers", "1")
    assert code == 1
    assert "damaged: class_0/001.jpg: Premature end of JPEG file" in printed
    assert "error: 3 damaged image(s)" in printed
    assert "--on-error skip" in printed
    code, printed = run(source, tmp_path / "out", "--on-error", "skip")
    assert code == 0
    assert "21 samples, 3 classes, 5 shards" in printed
    assert "3 left out" in printed


def test_shard_of_damaged_images_only_is_not_written(source: Path, tmp_path: Path) -> None:
    for number in range(5):
        truncate(source / "class_0" / f"00{number}.jpg")
    manifest = convert(
        source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE, on_error="skip")
    ).manifest
    assert [shard.name for shard in manifest.shards] == [f"shard-00000{number}.tar" for number in (1, 2, 3, 4)]
    assert not list((tmp_path / "out").glob("shard-000000.*"))
    records = open_records(tmp_path / "out")
    assert bytes(records.read(0)) == (source / "class_0" / "005.jpg").read_bytes()


def test_source_without_a_sound_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source" / "a").mkdir(parents=True)
    empty(tmp_path / "source" / "a" / "1.jpg")
    with pytest.raises(RecordsError, match="none of the 1 images"):
        convert(tmp_path / "source", tmp_path / "out", ConversionSettings(workers=1, on_error="skip"))


@pytest.mark.parametrize(
    ("mode", "file_format", "reason"),
    [
        ("CMYK", "JPEG", "CMYK JPEG"),
        ("RGB", "PNG", "PNG file"),
        ("RGBA", "PNG", "PNG file"),
        ("P", "PNG", "PNG file"),
        ("L", "BMP", "BMP file"),
        ("RGB", "WEBP", "WEBP file"),
    ],
)
def test_what_is_no_plain_jpeg_is_reencoded_and_listed(
    source: Path, tmp_path: Path, mode: str, file_format: str, reason: str
) -> None:
    path = source / "class_0" / "003.jpg"
    with Image.open(path) as image:
        image.convert(mode).save(path, file_format)
    manifest = convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE)).manifest
    assert manifest.remarks == (Remark(reason, (), 1),)
    assert manifest.reencoded == {reason: 1}
    records = open_records(tmp_path / "out")
    assert records.remark.tolist() == [0, 0, 0, 1] + [0] * 20
    with Image.open(io.BytesIO(records.read(3))) as stored, Image.open(path) as original:
        assert (stored.format, stored.mode) == ("JPEG", "RGB")
        difference = np.asarray(stored, dtype=float) - np.asarray(original.convert("RGB"), dtype=float)
    assert np.abs(difference).mean() < 5


def test_finished_output_is_complete_already(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out")[0] == 0
    code, printed = run(source, tmp_path / "out")
    assert code == 0
    assert "was complete already" in printed


def test_output_of_another_source_or_setting_names_overwrite(source: Path, expected: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(source, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    with pytest.raises(RecordsError, match="--overwrite"):
        convert(source, output, ConversionSettings(workers=1, shard_size=7))
    shutil.copy(source / "class_0" / "001.jpg", source / "class_0" / "008.jpg")
    with pytest.raises(RecordsError, match="--overwrite"):
        convert(source, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    assert contents(output) == contents(expected)
    assert convert(source, output, ConversionSettings(workers=1, shard_size=7, overwrite=True)).manifest.samples == 25
    assert len(list(output.glob("*.tar"))) == 4


def test_interrupted_output_of_another_source_or_setting_names_overwrite(source: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "out", tmp_path / "other"
    truncate(source / "class_0" / "000.jpg")
    with pytest.raises(DamagedImagesError):
        convert(source, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    with pytest.raises(RecordsError, match=r"another shard size.*--overwrite"):
        convert(source, output, ConversionSettings(workers=1, shard_size=7))
    source.rename(other)
    with pytest.raises(RecordsError, match=r"another source.*--overwrite"):
        convert(other, output, ConversionSettings(workers=1, shard_size=SHARD_SIZE))
    convert(other, output, ConversionSettings(workers=1, shard_size=7, on_error="skip", overwrite=True))
    assert len(list(output.glob("*.tar"))) == 4


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folder_is_left_alone(source: Path, tmp_path: Path, overwrite: bool) -> None:
    foreign = tmp_path / "out" / "thesis.tex"
    foreign.parent.mkdir()
    foreign.write_text("x")
    with pytest.raises(RecordsError, match=r"thesis\.tex"):
        convert(source, foreign.parent, ConversionSettings(workers=1, overwrite=overwrite))
    assert contents(foreign.parent) == {"thesis.tex": b"x"}


@pytest.mark.parametrize("output", ["", "class_0", "new/deep"])
def test_output_inside_the_source_is_refused(source: Path, output: str) -> None:
    with pytest.raises(RecordsError, match="inside the source"):
        convert(source, source / output, ConversionSettings(workers=1))
    assert len(list(source.iterdir())) == 3


@pytest.mark.parametrize("options", [["--workers", "0"], ["--shard-size", "0"], ["--format", "zip"], ["--worker", "2"]])
def test_wrong_usage_exits_with_2(source: Path, tmp_path: Path, options: list[str]) -> None:
    assert run(source, tmp_path / "out", *options)[0] == 2
    assert not (tmp_path / "out").exists()


def test_bad_source_exits_with_1(tmp_path: Path) -> None:
    code, printed = run(tmp_path / "nowhere", tmp_path / "out")
    assert code == 1
    assert printed == f"error: {tmp_path / 'nowhere'} does not exist; give a folder of images\n"
