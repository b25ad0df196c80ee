"""`equimod verify`: runs, checkpoints, records and images that are sound, and each file of them damaged in turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from small_conversion import truncate
from small_runs import newest

from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.tools.verify import main
from equimod.train.evaluate import main as evaluate
from equimod.train.main import main as train


@pytest.fixture(scope="module")
def sound(image_tree: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run, records, and the images that both are of."""
    folder = tmp_path_factory.mktemp("sound")
    shutil.copytree(image_tree, folder / "images")
    convert(image_tree, folder / "records", ConversionSettings(workers=1, shard_size=9))
    short = ["--epochs", "1", "--optim.warmup-epochs", "0", "--val", str(image_tree), "--output", str(folder / "run")]
    assert train([*options, *short]) == 0
    assert call(evaluate, folder / "run", "--knn").code == 0
    return folder


def test_what_is_sound_is_said_to_be_so(sound: Path) -> None:
    paths = [sound / "run", newest(sound / "run" / "checkpoints"), sound / "records", sound / "images"]
    answer = call(main, *paths)
    assert answer.code == 0, answer
    assert answer.out == "".join(f"sound: {path}\n" for path in paths)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "run/checkpoints/step-00000003/model.safetensors": (_flip, "does not have its digest"),
    "run/checkpoints/step-00000002/state.json": (Path.unlink, "cannot be read: No such file"),
    "run/encoder.safetensors": (_flip, "is not the encoder of the newest sound checkpoint"),
    "run/config.yaml": (lambda path: path.write_text("epochs: many"), "epochs='many' is of the wrong type"),
    "run/metrics.jsonl": (lambda path: path.write_text("1\n{}\n"), "has 2 damaged line(s)"),
    "run/eval.json": (truncate, "is damaged"),
    "records/manifest.json": (_flip, "is damaged"),
    "records/shard-000001.tar": (_flip, "shard-000001.tar"),
    "records/names.jsonl": (_flip, "does not have its digest"),
    "records/shard-000002.idx": (_flip, "shard-000002.idx does not have the digest"),
    "images/class_1/003.jpg": (truncate, "class_1/003.jpg"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_each_damaged_file_is_named(name: str, sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "copy")
    damage, fault = DAMAGED[name]
    damage(tmp_path / "copy" / name)
    top = tmp_path / "copy" / Path(name).parts[0]
    answer = call(main, top, sound / "images")
    assert answer.code == 1
    *told, last = answer.out.splitlines()
    assert any(line.startswith("damaged: ") and Path(name).name in line and fault in line for line in told), answer.out
    assert last == f"sound: {sound / 'images'}"
    assert answer.err == "error: 1 of 2 are damaged, as said above\n"


def test_many_faults_are_counted(sound: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(sound / "images", tmp_path / "images"))
    for path in images.rglob("*.jpg"):
        truncate(path)
    answer = call(main, images)
    assert answer.out.count("damaged: ") == 21
    assert answer.out.endswith(f"damaged: {images}: 4 more\n")


@pytest.mark.parametrize(("arguments", "said"), [((), "no PATH is given"), (("nothing",), "1 of 1 are damaged")])
def test_nothing_to_verify_is_no_success(arguments: tuple[str, ...], said: str) -> None:
    answer = call(main, *arguments)
    assert answer.code == (1 if arguments else 2)
    assert answer.err.startswith(f"error: {said}")
