"""Images without labels: a folder of them trains and is evaluated by what needs none; what needs some says so."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
from commands import call

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.folder import scan_tree
from equimod.pipelines.records.protocol import fingerprint
from equimod.tools.convert_imagenet import main as convert_command
from equimod.tools.inspect_records import main as inspect
from equimod.train.evaluate import main as evaluate
from equimod.train.main import main as train


@pytest.fixture(scope="module")
def photos(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 24 images of `image_tree` in one folder."""
    root = tmp_path_factory.mktemp("photos")
    for image in sorted(image_tree.rglob("*.jpg")):
        shutil.copy(image, root / f"{image.parent.name}-{image.name}")
    return root


@pytest.fixture
def nested(photos: Path, tmp_path: Path) -> Path:
    """The same in folders of several levels."""
    root = tmp_path / "nested"
    for number, image in enumerate(sorted(photos.iterdir())):
        place = root / ("2024" if number % 2 else "2025/summer") / image.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    return root


def test_images_in_one_folder_have_no_labels(photos: Path) -> None:
    tree = scan_tree(photos)
    assert (tree.classes, set(tree.labels)) == ([], {-1})
    assert tree.names == sorted(path.name for path in photos.iterdir())
    with pytest.raises(RecordsError, match="holds no folders that could be classes; leave --labels out"):
        scan_tree(photos, "folder")


def test_nested_images_are_asked_about(nested: Path, photos: Path) -> None:
    with pytest.raises(RecordsError, match=r"images in folders of folders: give --labels folder .* --labels none"):
        scan_tree(nested)
    without = scan_tree(nested, "none")
    assert without.classes == []
    assert sorted(Path(name).name for name in without.names) == sorted(path.name for path in photos.iterdir())
    by_folder = scan_tree(nested, "folder")
    assert by_folder.classes == ["2024", "2025"]
    assert [by_folder.labels[i] for i, name in enumerate(by_folder.names) if "summer" in name] == [1] * 12


def test_images_beside_folders_of_images_are_asked_about(image_tree: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(image_tree, tmp_path / "tree"))
    assert scan_tree(root).classes == ["class_0", "class_1", "class_2"]
    shutil.copy(root / "class_0" / "000.jpg", root / "beside.jpg")
    with pytest.raises(RecordsError, match="holds images beside folders of images: give --labels"):
        scan_tree(root)
    assert len(scan_tree(root, "none").names) == 25
    assert len(scan_tree(root, "folder").names) == 24


def test_an_empty_folder_beside_images_is_no_class(photos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    (root / "empty").mkdir()
    assert scan_tree(root).classes == []


@pytest.mark.parametrize("labels", ["auto", "folder", "none"])
def test_a_folder_without_images_is_refused(labels: str, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "one.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(RecordsError, match=r"holds no images \(\.jpg, .*\); give a folder that does"):
        scan_tree(tmp_path, labels)


@pytest.mark.parametrize("name", ["tar", "file.beton"])
def test_records_without_labels_are_those_of_the_folder(photos: Path, tmp_path: Path, name: str) -> None:
    write = convert_to_beton if name.endswith("beton") else convert
    write(open_source(photos), tmp_path / name, ConversionSettings(workers=1))
    again = tmp_path / "again"
    convert(open_source(tmp_path / name), again, ConversionSettings(workers=1))
    folder = open_records(photos)
    for path in (tmp_path / name, again):
        records = open_records(path)
        assert (records.classes, set(records.label.tolist())) == ([], {-1})
        assert fingerprint(records).table == fingerprint(folder).table
        (batch,) = build_pipeline(records, POLICIES["simclr_cifar10"], batch_size=24, seed=0).epoch(0)
        assert set(batch.label.tolist()) == {-1}


def test_labels_may_be_left_out_of_records(image_tree: Path, tmp_path: Path) -> None:
    answer = call(convert_command, image_tree, tmp_path / "out", "--labels", "none", "--workers", "1")
    assert answer.code == 0
    assert "24 samples, no labels, " in answer.out
    assert open_records(tmp_path / "out").classes == []


def test_inspect_says_that_there_are_no_labels(photos: Path, tmp_path: Path) -> None:
    answer = call(inspect, photos, "--sheet", tmp_path / "sheet.png")
    assert answer.code == 0
    assert "labels        none" in answer.out
    assert (tmp_path / "sheet.png").is_file()


@pytest.fixture(scope="module")
def run(photos: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of EquiMod on the photos alone."""
    output = tmp_path_factory.mktemp("run") / "run"
    assert call(train, *options[:2], "--data", photos, "--epochs", "2", "--output", output).code == 0
    return output


def test_a_run_without_labels_is_evaluated_by_what_needs_none(run: Path) -> None:
    answer = call(evaluate, run)
    assert answer.code == 0, answer.err
    assert "no validation images: measured on the training images" in answer.out
    assert "equivariance_absolute" in answer.out
    assert "top1" not in answer.out
    assert (run / "figures" / "views.png").is_file()


def test_the_rank_of_representations_needs_no_labels(run: Path) -> None:
    answer = call(evaluate, run, "--rank")
    assert answer.code == 0, answer.err
    assert "rankme" in answer.out
    assert "lidar" in answer.out


def test_validation_images_may_have_labels(photos: Path, image_tree: Path, options: list[str], tmp_path: Path) -> None:
    words = [*options[:2], "--data", photos, "--val", image_tree, "--epochs", "2", "--output", tmp_path / "run"]
    assert call(train, *words).code == 0


def test_what_needs_labels_says_so(run: Path, photos: Path, options: list[str], tmp_path: Path) -> None:
    for evaluator in ("--knn", "--linear-cached", "--linear", "--few-shot", "--transfer"):
        answer = call(evaluate, run, evaluator)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert f"{evaluator} needs labels, and these images have none; give --train and --val with them" in answer.err
    answer = call(train, *options[:2], "--data", photos, "--online-probe", "--output", tmp_path / "run")
    assert answer.code == 2
    assert f"online_probe learns from labels, and data={photos} has none; leave --online-probe out" in answer.err


def test_a_run_without_labels_is_evaluated_on_images_with_labels(run: Path, image_tree: Path) -> None:
    answer = call(evaluate, run, "--knn", "--train", image_tree, "--val", image_tree)
    assert answer.code == 0, answer.err
    assert "knn_top1" in answer.out


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_list_gives_paths_and_labels(image_tree: Path, tmp_path: Path, name: str) -> None:
    between, folder = "," if name.endswith("csv") else "\t", open_records(image_tree)
    lines = [f"{image_tree / folder.source(i)}{between}{folder.classes[folder.label[i]]}" for i in range(24)]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    listed = open_records(tmp_path / name)
    assert fingerprint(listed).table == fingerprint(folder).table
    assert open_records(tmp_path / name, "none").classes == []
    convert(open_source(tmp_path / name), tmp_path / "records", ConversionSettings(workers=1))
    assert fingerprint(open_records(tmp_path / "records")).table == fingerprint(folder).table


def test_a_list_may_give_paths_alone_relative_to_itself(photos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    names = sorted(path.name for path in root.iterdir())
    (tmp_path / "list.txt").write_text("\n".join(f"photos/{name}" for name in reversed(names)), encoding="utf-8")
    records = open_records(tmp_path / "list.txt")
    assert records.classes == []
    assert [records.source(i) for i in range(24)] == [f"photos/{name}" for name in reversed(names)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no images"),
        (b"a.jpg\tcat\nb.jpg\n", "entry 2 does not hold a path, or a path and a label, as the first one does"),
        (b"a.jpg\tcat\tdog\n", "entry 1 does not hold"),
        (b"gone.jpg\n", "gone.jpg cannot be read: No such file or directory"),
        (b"\xff\xfe\n", "is no list of images in UTF-8"),
        (b"a" * 200_000, r"is no list of images in UTF-8 \(field larger than field limit"),
        (b"a.jpg\nb\0.jpg\n", "entry 2 holds a NUL, which no path does"),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(RecordsError, match=message) as caught:
        open_records(tmp_path / "list.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["é\n.jpg", "\u2028.jpg", "a,b.jpg", 'a"b.jpg'])
def test_a_list_of_a_spreadsheet_may_name_any_file(photos: Path, tmp_path: Path, name: str) -> None:
    """With a byte order mark, lines that end in two characters, and quotes around what needs them."""
    shutil.copy(next(photos.iterdir()), tmp_path / name)
    with (tmp_path / "list.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([[name, "cat"], [name, "dog"]])
    records = open_records(tmp_path / "list.csv")
    assert [records.source(i) for i in range(2)] == [name, name]
    assert records.classes == ["cat", "dog"]


def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(RecordsError, match=r"list\.txt cannot be read: it is no file, but a pipe"):
        open_records(tmp_path / "list.txt")
