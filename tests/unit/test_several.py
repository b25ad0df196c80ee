"""Images where they lie: archives that are read in place, and several sources as one, in training and conversion."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion import archive_records, open_source, open_sources
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.images import open_images, survey
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import Records, RecordsError, fingerprint
from equimod.tools.convert_imagenet import main as convert_command
from equimod.train.config import read_recipe
from equimod.train.main import main as train

ONE = ConversionSettings(workers=1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three images of class cat and two of dog, of different sizes."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(["cat/0", "cat/1", "cat/2", "dog/3", "dog/4"]):
        path = tmp_path / "tree" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "tree"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """One image of class ant and two of dog."""
    for number, name in enumerate(["ant/0", "dog/1", "dog/2"]):
        path = tmp_path / "other" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 30 + number), (number, 99, 0)).save(path)
    return tmp_path / "other"


def _tar(tree: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(tree, "any")
    return path


def _zip(tree: Path, path: Path, compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(tree.rglob("*.*")):
            archive.write(file, file.relative_to(tree))
    return path


def _contents(records: Records) -> list[bytes]:
    return [bytes(memoryview(records.read(position))) for position in range(len(records))]


def test_an_archive_is_read_like_the_tree_in_it(tree: Path, tmp_path: Path) -> None:
    expected = open_images(tree)
    archives = [
        _tar(tree, tmp_path / "a.tar"),
        _zip(tree, tmp_path / "stored.zip", zipfile.ZIP_STORED),
        _zip(tree, tmp_path / "deflated.zip", zipfile.ZIP_DEFLATED),
    ]
    for path in archives:
        found = open_images(path)
        assert _contents(found) == _contents(expected), path
        assert (found.classes, found.label.tolist()) == (expected.classes, expected.label.tolist())
        assert found.size.tolist() == expected.size.tolist()
        assert [found.source(i) for i in range(5)] == [expected.source(i) for i in range(5)]
        assert fingerprint(found).table == fingerprint(expected).table
    assert open_images(archives[0], "none").classes == []


def test_shards_by_a_pattern_are_read_in_place(tree: Path, tmp_path: Path) -> None:
    for number, name in enumerate(["cat/0", "dog/3"]):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            archive.add(tree / f"{name}.jpg", f"{number}.jpg")
            label = tarfile.TarInfo(f"{number}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(str(number).encode()))
    found = open_images(tmp_path / "s-{0..1}.tar")
    assert _contents(found) == [(tree / "cat/0.jpg").read_bytes(), (tree / "dog/3.jpg").read_bytes()]
    assert found.label.tolist() == [0, 1]


def test_a_header_that_is_longer_than_what_is_read_first(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _tar(tree, tmp_path / "a.tar")
    monkeypatch.setattr(archive_records, "HEADER", 8)
    assert open_images(path).size.tolist() == open_images(tree).size.tolist()


def test_images_are_surveyed_wherever_they_lie(tree: Path, other: Path, tmp_path: Path) -> None:
    convert(tree, tmp_path / "records", ONE)
    for path in (tree, tmp_path / "records", _tar(tree, tmp_path / "a.tar")):
        count, sizes = survey(path)
        assert (count, sorted(sizes[:, 1].tolist())) == (5, [40, 41, 42, 43, 44])
    assert survey([tree, other])[0] == 8


def test_what_is_damaged_in_an_archive_is_named(tree: Path, tmp_path: Path) -> None:
    (tree / "cat" / "1.jpg").write_bytes(b"no image")
    path = _tar(tree, tmp_path / "a.tar")
    with pytest.raises(RecordsError, match=r"a\.tar: cat/1\.jpg cannot be read: it is no image"):
        open_images(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.parquet", "a.pdf", "none.tar"])
def test_what_cannot_be_read_in_place_is_refused(name: str, tree: Path, tmp_path: Path) -> None:
    if name == "a.tar.gz":
        _tar(tree, tmp_path / name, "w:gz")
    elif name != "none.tar":
        (tmp_path / name).write_bytes(b"%PDF" * 999)
    with pytest.raises(RecordsError, match=name):
        open_images(tmp_path / name)


def test_several_are_one_after_the_other_and_classes_go_by_name(tree: Path, other: Path, tmp_path: Path) -> None:
    convert(tree, tmp_path / "records", ONE)
    for first in (tree, tmp_path / "records", _tar(tree, tmp_path / "a.tar")):
        found = open_images([first, other])
        assert found.classes == ["ant", "cat", "dog"]
        assert found.label.tolist() == [1, 1, 1, 2, 2, 0, 2, 2]
        assert found.index.tolist() == list(range(8))
        assert _contents(found) == _contents(open_images(first)) + _contents(open_images(other))
        assert found.size[5].tolist() == [60, 30]
        assert found.source(5) == f"{other}/ant/0.png"
        assert str(other) in found.name(7)
        assert len(found) == 8
        found.will_read(np.array([6, 0, 7]))
    assert fingerprint(open_images([tree, other])).table != fingerprint(open_images([other, tree])).table


def test_gaps_of_a_part_stay(tree: Path, other: Path, tmp_path: Path) -> None:
    (tree / "cat" / "1.jpg").write_bytes(b"no image")
    convert(tree, tmp_path / "records", ConversionSettings(workers=1, on_error="skip"))
    assert open_images([tmp_path / "records", other]).index.tolist() == [0, 2, 3, 4, 5, 6, 7]


def test_a_part_is_asked_ahead_for_its_own_samples(tree: Path, other: Path) -> None:
    asked: list[tuple[str, list[int]]] = []
    found = open_images([tree, other])
    for name, part in zip("ab", found._parts, strict=True):
        part.will_read = lambda positions, name=name: asked.append((name, positions.tolist()))
    found.will_read(np.array([6, 0, 7]))
    assert asked == [("a", [0]), ("b", [1, 2])]


def test_labels_of_some_alone_are_refused_or_left_out(tree: Path, other: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (tree / "cat" / "0.jpg").rename(flat / "0.jpg")
    convert(tree, tmp_path / "records", ONE)
    for opened in (open_images, open_sources):
        with pytest.raises(RecordsError, match=f"records has labels and {flat} has none; give --labels none"):
            opened([tmp_path / "records", flat])
    found = open_images([tmp_path / "records", flat], "none")
    assert (found.classes, found.label.tolist()) == ([], [-1] * 5)
    source = open_sources([tmp_path / "records", flat], labels="none")
    assert (source.classes, {item.label for item in source.items}) == ([], {-1})


def test_a_pipeline_reads_several_and_archives(tree: Path, other: Path, tmp_path: Path) -> None:
    plain = open_images([tree, other])
    inside = open_images([_tar(tree, tmp_path / "a.tar"), _zip(other, tmp_path / "b.zip", zipfile.ZIP_DEFLATED)])
    batches = [
        next(build_pipeline(records, POLICIES["simclr_cifar10"], batch_size=8, seed=3, workers=1).epoch(0))
        for records in (plain, inside)
    ]
    assert batches[0].index.tolist() == batches[1].index.tolist()
    assert batches[0].images.equal(batches[1].images)


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_several_are_converted_into_one(output: str, tree: Path, other: Path, tmp_path: Path) -> None:
    sources = [str(_tar(tree, tmp_path / "a.tar")), str(other)]
    form = ["--format", "ffcv"] if output.endswith(".beton") else []
    answer = call(convert_command, *sources, str(tmp_path / output), *form, "--workers", "1")
    assert answer.code == 0, answer.err
    found, expected = open_records(tmp_path / output), open_images([tree, other])
    assert found.label.tolist() == expected.label.tolist()
    assert found.size.tolist() == expected.size.tolist()
    assert _contents(found)[:5] == _contents(expected)[:5]
    assert found.manifest is not None
    assert found.manifest.source == "a.tar + other"
    assert "was complete already" in call(convert_command, *sources, str(tmp_path / output), *form).out
    refused = call(convert_command, sources[0], str(tmp_path / output), *form)
    assert refused.code == 1
    assert "holds records of another source" in refused.err


def test_an_interrupted_conversion_goes_on_with_the_same_sources_alone(
    tree: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = "equimod.pipelines.conversion.convert._finish"
    with monkeypatch.context() as broken:
        broken.setattr(finish, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(open_sources([tree, other]), tmp_path / "records", ONE)
    (other / "ant" / "0.png").rename(tree / "cat" / "5.png")
    with pytest.raises(RecordsError, match="interrupted conversion with another source"):
        convert(open_sources([tree]), tmp_path / "records", ONE)


def test_records_within_any_of_the_sources_are_refused(tree: Path, other: Path) -> None:
    for output in (tree / "records", other / "records"):
        with pytest.raises(RecordsError, match=str(output)):
            convert(open_sources([tree, other]), output, ONE)


@pytest.mark.parametrize("words", [[], ["records"]])
def test_a_conversion_without_input_or_output_is_refused(words: list[str]) -> None:
    answer = call(convert_command, *words)
    assert answer.code == 2
    assert answer.err == "error: INPUT or OUTPUT is missing; give what to convert, then where to\n"


def test_a_run_on_several_and_on_an_archive(tree: Path, other: Path, tmp_path: Path) -> None:
    archive = _tar(tree, tmp_path / "a.tar")
    words = ["--epochs", "1", "--encoder.width", "8", "--encoder.arch", "resnet10", "--image-size", "32"]
    words += ["--batch-size", "4", "--system.device", "cpu", "--output", str(tmp_path / "run")]
    answer = call(train, "--data", str(archive), str(other), *words)
    assert answer.code == 0, answer.err
    assert "8 images of " in answer.out
    assert read_recipe(tmp_path / "run" / "config.yaml").data == (archive, other)


def test_the_data_of_an_older_run_is_one_path(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("dataset: shapes\ndata: records\nval: null\n", encoding="utf-8")
    config = read_recipe(tmp_path / "config.yaml")
    assert (config.data, config.val) == ((Path("records"),), None)


def test_a_source_alone_is_as_before(tree: Path) -> None:
    assert open_sources([tree]) == open_source(tree)
