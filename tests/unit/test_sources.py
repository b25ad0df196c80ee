"""Every source to every format: the same samples, the bytes of the source, and one line about what is wrong."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import call
from fake_archives import CIFAR_CLASSES, add, write_cifar10, write_train_archive, write_val_archives
from needs import needs
from PIL import Image

from equimod.pipelines.conversion import Source, open_source
from equimod.pipelines.conversion.check import Shrink
from equimod.pipelines.conversion.cifar import cifar10_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton, parts_folder
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.decode import decode
from equimod.pipelines.durable import locked
from equimod.pipelines.records import Records, open_records
from equimod.pipelines.records.beton import BetonRecords
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.records.tar import TarRecords
from equimod.tools import convert_cifar10, convert_imagenet


def _convert(source: Source | Path, output: Path, **settings: object) -> Records:
    """Records of the format that the output's name asks for."""
    source = open_source(source) if isinstance(source, Path) else source
    write = convert_to_beton if output.suffix == ".beton" else convert
    write(source, output, ConversionSettings(**{"workers": 1, **settings}))  # type: ignore[arg-type]
    return open_records(output)


def _same_samples(a: Records, b: Records) -> bool:
    columns = ("label", "index", "size", "stored_size", "length")
    return (
        a.classes == b.classes
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)
        and all(a.source(i) == b.source(i) and bytes(a.read(i)) == bytes(b.read(i)) for i in range(len(a)))
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def wordnet_tree(image_tree: Path, tmp_path: Path) -> Path:
    """The small tree with WordNet IDs for class names and .JPEG for ending."""
    for path in image_tree.glob("*/*.jpg"):
        target = tmp_path / "tree" / f"n0000000{path.parent.name[-1]}" / f"{path.stem}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "tree"


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_the_training_archive_gives_the_records_of_the_unpacked_tree(
    output: str, wordnet_tree: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "ILSVRC2012_img_train.tar"
    write_train_archive(archive, wordnet_tree)
    assert _same_samples(_convert(archive, tmp_path / output), _convert(wordnet_tree, tmp_path / f"tree-{output}"))


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_the_validation_archive_gives_the_records_of_the_usual_tree(
    output: str, wordnet_tree: Path, tmp_path: Path
) -> None:
    needs("imagenet")
    images = {f.name: [path.read_bytes() for path in sorted(f.iterdir())] for f in sorted(wordnet_tree.iterdir())}
    write_val_archives(tmp_path, images)
    records = _convert(tmp_path / "ILSVRC2012_img_val.tar", tmp_path / output)
    assert records.classes == sorted(images)
    assert [bytes(records.read(i)) for i in range(len(records))] == [
        jpeg for wnid in sorted(images) for jpeg in images[wnid]
    ]
    assert records.label.tolist() == [label for label in range(3) for _ in range(8)]
    assert records.source(0) == "n00000000/ILSVRC2012_val_00000003.JPEG"


def test_the_validation_archive_without_its_devkit_names_the_option(tmp_path: Path) -> None:
    needs("imagenet")
    write_val_archives(tmp_path, {"n01": [b"x"]})
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(RecordsError, match="--devkit"):
        open_source(tmp_path / "ILSVRC2012_img_val.tar")


@pytest.mark.parametrize("fault", ["cut short", "no archive", "of texts", "empty"])
def test_an_archive_that_cannot_be_used_is_one_line(fault: str, wordnet_tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_train_archive(path, wordnet_tree)
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif fault == "no archive":
        path.write_bytes(b"GIF89a" * 500)
    elif fault == "of texts":
        with tarfile.open(path, "w") as archive:
            add(archive, "readme.txt", b"x")
    else:
        path.write_bytes(b"")
    answer = call(convert_imagenet.main, path, tmp_path / "out")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("error: ")
    assert "x.tar" in answer.err


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("cut", [0, 100, None])
def test_an_archive_never_loses_images_at_a_cut_or_damaged_header(
    cut: int | None, inner: bool, wordnet_tree: Path, tmp_path: Path
) -> None:
    """Python's tarfile ends there without an error."""
    path = tmp_path / "x.tar"
    write_train_archive(path, wordnet_tree)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as outer:
        member = outer.getmembers()[1]
        header = member.offset
        if inner:
            with tarfile.open(fileobj=outer.extractfile(member)) as archive:
                header = member.offset_data + archive.getmembers()[2].offset
    if cut is None:
        content[header + 150] ^= 1  # in the checksum
    else:
        del content[header + cut :]
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=r"x\.tar.*download it again"):
        open_source(path)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_cifar10_keeps_every_pixel_in_torchvisions_order(archive: bool, output: str, tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path)
    source = tmp_path
    if archive:
        source = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(source, "w:gz") as packed:
            packed.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    for split in ("train", "test"):
        records = _convert(cifar10_source(source, split), tmp_path / f"{split}-{output}")  # type: ignore[arg-type]
        assert records.classes == CIFAR_CLASSES
        assert records.raw == (output == "records.beton")
        assert records.label.tolist() == [row % 10 for _ in range(len(pixels[split]) // 12) for row in range(12)]
        for position, expected in enumerate(pixels[split]):
            np.testing.assert_array_equal(decode(records.read(position)), expected)


def test_cifar10s_pickles_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("ran",))

    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(RecordsError, match=r"data_batch_2.*builtins\.print"):
        cifar10_source(tmp_path, "train")


@pytest.mark.parametrize("damage", [b"", b"\x80\x02}q\x00.", b"not a pickle"])
def test_damaged_files_of_cifar10_are_named(damage: bytes, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(damage)
    with pytest.raises(RecordsError, match=r"test_batch.*download it again"):
        cifar10_source(tmp_path, "test")
    with pytest.raises(RecordsError, match="holds neither"):
        cifar10_source(tmp_path / "cifar-10-batches-py" / "nothing", "test")


@pytest.mark.parametrize("raw", [False, True])
def test_from_format_to_format_and_back_is_the_same_to_the_byte(raw: bool, image_tree: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    _convert(image_tree, first, shard_size=10)
    if raw:  # pixels in a .beton become PNG files in shards, and these the same pixels
        _convert(first, tmp_path / "pixels.beton", raw=True)
        first = tmp_path / "png"
        _convert(tmp_path / "pixels.beton", first, shard_size=10)
    beton = tmp_path / "first.beton"
    assert _same_samples(_convert(first, beton), open_records(first)) or raw
    _convert(beton, tmp_path / "second", shard_size=10)
    _convert(tmp_path / "second", tmp_path / "second.beton")
    assert _files(tmp_path / "second") == _files(first)
    assert (tmp_path / "second.beton").read_bytes() == beton.read_bytes()


def test_what_was_left_out_stays_known_from_format_to_format(image_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(image_tree, tmp_path / "tree")
    (tmp_path / "tree" / "class_1" / "003.jpg").write_bytes(b"damaged")
    _convert(tmp_path / "tree", tmp_path / "records", on_error="skip")
    beton = _convert(tmp_path / "records", tmp_path / "r.beton")
    assert isinstance(beton, BetonRecords)
    assert beton.trailer is not None
    assert [note.name for note in beton.trailer.manifest.left_out] == ["class_1/003.jpg"]
    assert 11 not in beton.index
    _convert(tmp_path / "r.beton", tmp_path / "again")
    assert _files(tmp_path / "again") == _files(tmp_path / "records")


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_smaller_copies_keep_the_original_size_and_small_images_their_bytes(
    output: str, image_tree: Path, tmp_path: Path
) -> None:
    full = _convert(image_tree, tmp_path / f"full-{output}")
    small = _convert(image_tree, tmp_path / output, shrink=Shrink(60, 95))
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


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_a_finished_output_is_complete_and_another_one_is_refused(
    output: str, image_tree: Path, tmp_path: Path
) -> None:
    _convert(image_tree, tmp_path / output)
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
    _convert(image_tree, tmp_path / "pixels.beton", raw=True)
    source = open_source(image_tree)
    with pytest.raises(RecordsError, match="--overwrite"):
        convert_to_beton(source, tmp_path / "pixels.beton", ConversionSettings(workers=1))
    assert convert_to_beton(source, tmp_path / "pixels.beton", ConversionSettings(workers=1, raw=True)).written == 0


def test_a_beton_that_cannot_be_written_is_named_itself(image_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "r.beton"
    with pytest.raises(RecordsError, match=f"^{output} cannot be written: Not a directory"):
        _convert(image_tree, output)


def test_shards_of_jpegs_are_not_those_of_the_same_images_pixels(image_tree: Path, tmp_path: Path) -> None:
    _convert(image_tree, tmp_path / "pixels.beton", raw=True)
    _convert(image_tree, tmp_path / "records")
    with pytest.raises(RecordsError, match="--overwrite"):
        _convert(tmp_path / "pixels.beton", tmp_path / "records")
    _convert(tmp_path / "pixels.beton", tmp_path / "png")
    assert convert(open_source(tmp_path / "pixels.beton"), tmp_path / "png", ConversionSettings(workers=1)).written == 0


@pytest.mark.parametrize("source", ["tree", "records"])
def test_a_beton_is_written_by_one_process_at_a_time(source: str, image_tree: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    _convert(image_tree, records)
    output = tmp_path / "r.beton"
    parts_folder(output).mkdir()
    with locked(parts_folder(output)), pytest.raises(RecordsError, match="another process"):
        _convert(records if source == "records" else image_tree, output)
    assert not output.exists()
    _convert(records if source == "records" else image_tree, output)
    assert not parts_folder(output).exists()


@pytest.mark.parametrize("stage", ["shards", "file", "removal"])
def test_an_interrupted_beton_goes_on_to_the_same_bytes(
    stage: str, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _convert(image_tree, tmp_path / "whole.beton")
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
            _convert(image_tree, output)
    assert output.exists() == (stage == "removal")
    assert parts_folder(output).exists()
    assert _same_samples(_convert(image_tree, output), open_records(tmp_path / "whole.beton"))
    assert not parts_folder(output).exists()
    assert output.read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_records_say_how_small_their_copies_are_whatever_is_asked_later(image_tree: Path, tmp_path: Path) -> None:
    _convert(image_tree, tmp_path / "50", shrink=Shrink(50, 90))
    for side, said in ((80, 50), (40, 40)):
        records = _convert(tmp_path / "50", tmp_path / str(side), shrink=Shrink(side, 80))
        assert isinstance(records, TarRecords)
        assert (records.manifest.max_side, records.stored_size.max()) == (said, said)


def test_a_file_of_pixels_stays_one(image_tree: Path, tmp_path: Path) -> None:
    _convert(image_tree, tmp_path / "a.beton", raw=True)
    _convert(tmp_path / "a.beton", tmp_path / "b.beton")
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["out.beton"], "--format dali"),
        (["out", "--format", "ffcv"], ".beton"),
        (["out", "--raw"], "--format ffcv"),
        (["out", "--quality", "90"], "--max-side"),
        (["out", "--max-side", "0"], "--max-side 0"),
        (["out", "--max-side", "9", "--quality", "101"], "--quality 101"),
        (["out.beton", "--format", "ffcv", "--shard-size", "5"], "--shard-size"),
    ],
)
def test_options_that_do_not_fit_exit_with_2(options: list[str], word: str, image_tree: Path, tmp_path: Path) -> None:
    answer = call(convert_imagenet.main, image_tree, tmp_path / options[0], *options[1:])
    assert answer.code == 2
    assert word in answer.err
    assert answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_lines_convert_to_both_formats(image_tree: Path, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    for main, *arguments in (
        (convert_imagenet.main, image_tree, tmp_path / "a", "--max-side", 50),
        (convert_imagenet.main, tmp_path / "a", tmp_path / "a.beton", "--format", "ffcv"),
        (convert_cifar10.main, tmp_path, tmp_path / "c", "--split", "test"),
        (convert_cifar10.main, tmp_path, tmp_path / "c.beton", "--split", "test", "--format", "ffcv"),
    ):
        answer = call(main, *arguments)
        assert answer.code == 0, answer.err
        assert "samples" in answer.out
        assert len(open_records(arguments[1])) in (24, 12)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.beton", "c", "c.beton", "cifar-10-batches-py"}
