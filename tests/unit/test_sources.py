"""Every source to every format: the same samples, the bytes of the source, and one line about what is wrong."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from commands import call
from conversions import converted, same_samples
from fake_archives import CIFAR_CLASSES, add, write_cifar10, write_train_archive, write_val_archives
from needs import needs

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.cifar import cifar10_source
from equimod.pipelines.decode import decode
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import RecordsError
from equimod.tools import convert_cifar10, convert_imagenet


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
    assert same_samples(converted(archive, tmp_path / output), converted(wordnet_tree, tmp_path / f"tree-{output}"))


@pytest.mark.parametrize("output", ["records", "records.beton"])
def test_the_validation_archive_gives_the_records_of_the_usual_tree(
    output: str, wordnet_tree: Path, tmp_path: Path
) -> None:
    needs("imagenet")
    images = {f.name: [path.read_bytes() for path in sorted(f.iterdir())] for f in sorted(wordnet_tree.iterdir())}
    write_val_archives(tmp_path, images)
    records = converted(tmp_path / "ILSVRC2012_img_val.tar", tmp_path / output)
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
        records = converted(cifar10_source(source, split), tmp_path / f"{split}-{output}")
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


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["out.beton", "--format", "dali"], "--format dali; give a folder"),
        (["out", "--format", "ffcv"], "--format ffcv; give a file name ending in .beton"),
        (["out", "--raw"], "ends in .beton"),
        (["out", "--quality", "90"], "--max-side"),
        (["out", "--max-side", "0"], "--max-side 0"),
        (["out", "--max-side", "9", "--quality", "101"], "--quality 101"),
        (["out.beton", "--shard-size", "5"], "--shard-size"),
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
        (convert_cifar10.main, tmp_path, tmp_path / "c.beton", "--split", "test"),
    ):
        answer = call(main, *arguments)
        assert answer.code == 0, answer.err
        assert "samples" in answer.out
        assert len(open_records(arguments[1])) in (24, 12)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.beton", "c", "c.beton", "cifar-10-batches-py"}
