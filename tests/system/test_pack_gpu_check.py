"""The folder for a GPU machine without a network: it installs and runs where nothing but PyTorch is there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest
from needs import needs_jpeg

from equimod.pipelines.records import open_records
from equimod.tools import pack_gpu_check
from equimod.tools.pack_gpu_check import WHEELS, Arguments, ImageSet, PackError, main, pack

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A new environment with pip and what a GPU machine has: all that is installed here but what a pack brings."""
    brought = {"equimod", "__editable___equimod_0_1_0_finder.py", "shtab", "mdurl"}
    for name in {*WHEELS} - {"shtab", "pip"}:
        brought |= {file.parts[0] for file in distribution(name).files or []}
    links = tmp_path / "box"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name not in brought and "equimod" not in entry.name:
            (links / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "box.pth").write_text(f"{links}\n")
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.ci
def test_a_pack_installs_without_an_index_and_runs_the_check(
    tmp_path: Path, bare_python: Path, image_tree: Path
) -> None:
    needs_jpeg()
    data = tmp_path / "archives"
    _zip(image_tree, data / "imagenet_sample.zip")
    folder = tmp_path / "carried pack"
    arguments = Arguments(folder, HERE, platform.machine(), data)
    pack(arguments, (ImageSet("imagenet", "imagenet_sample.zip", "", 9),))

    without = subprocess.run([bare_python, "-c", "import tyro"], capture_output=True, check=False)
    assert without.returncode
    environment = {**os.environ, "PYTHON": str(bare_python), "PIP_INDEX_URL": "http://127.0.0.1:9"}
    environment.pop("PYTHONPATH", None)
    options = ["--device", "cpu", "--only", "machine", "training"]
    done = subprocess.run(
        ["sh", folder / "run.sh", *options], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decoding of regions is compiled" in done.stdout
    assert "real ImageNet files" in done.stdout
    assert "everything that ran is as it must be" in done.stdout
    (library,) = (folder / "site").rglob("_decode*.so")
    linked = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    jpeg = re.search(r"libjpeg\S* => (.*) \(", linked)
    assert jpeg is not None
    assert Path(jpeg[1]).resolve().parent == folder / "libjpeg" / "lib"
    assert len(open_records(folder / "data" / "imagenet.beton")) == 9

    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    committing = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "a"]
    subprocess.run(committing, check=True, cwd=tmp_path)
    asking = "from equimod.train.evaluation.provenance import provenance; print(provenance('', [])['commit'])"
    told = subprocess.run(
        [bare_python, "-c", asking],
        env={**environment, "PYTHONPATH": str(folder / "site"), "EQUIMOD_COMMIT": "abc+"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.strip() == "{'sha': 'abc', 'dirty': True}", "the pack's commit, not that of a checkout around it"


def _zip(tree: Path, archive: Path) -> None:
    archive.parent.mkdir()
    shutil.make_archive(str(archive.with_suffix("")), "zip", tree)


def test_images_are_taken_of_every_class_in_turn() -> None:
    names = ["b/", "b/2.jpg", "b/1.jpg", "a/1.jpg", "c/1.jpg", "other/1.jpg"]
    assert pack_gpu_check._chosen(names, ImageSet("", "", "", 4)) == ["a/1.jpg", "b/1.jpg", "c/1.jpg", "other/1.jpg"]
    assert pack_gpu_check._chosen(names, ImageSet("", "", "b/", 4)) == ["b/1.jpg", "b/2.jpg"]


def test_a_pack_for_another_processor_or_python_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    with pytest.raises(PackError, match="make the pack on one like that"):
        pack_gpu_check._copy_jpeg(tmp_path / "jpeg", other)
    with pytest.raises(PackError, match="pip cannot download the wheels"):
        pack(Arguments(tmp_path / "pack", "2.7", "x86_64", None))
    assert not list(tmp_path.iterdir())


def test_a_pack_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_gpu_check, "LIMIT", 1000)
    monkeypatch.setattr(pack_gpu_check, "_download", lambda folder, arguments: None)
    monkeypatch.setattr(pack_gpu_check, "_copy_jpeg", lambda folder, machine: None)
    with pytest.raises(PackError, match="more than the 0 that may be carried"):
        pack(Arguments(tmp_path / "pack", data=None))
    assert not list(tmp_path.iterdir())


def test_another_python_than_the_packs_is_told(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(pack_gpu_check._script(Arguments(tmp_path, python="3.99")))
    done = subprocess.run(
        ["sh", script], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: this pack is for Python 3.99")


def test_a_folder_without_the_archives_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pack_gpu_check.py", str(tmp_path / "out"), "--data", str(tmp_path)])
    assert main() == 2
    assert "holds no imagenet_sample.zip" in capsys.readouterr().err
