"""The wheel: nothing but `equimod`, complete, and importable without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from needs import needs

ROOT = Path(__file__).parents[2]
FORMS = ("torchvision", "timm", "hub", "onnx", "torchscript")
LOAD = f"""\
import re, sys, torch
card, images = open("exported/README.md").read(), torch.randn(3, 3, 64, 64)
def features(form):
    names = {{}}
    exec(re.search(f"^{{form}}:\\n\\n```python\\n(.*?)```", card, re.S | re.M)[1], names)
    return torch.as_tensor(names["model"](images.numpy() if form == "onnx" else images))
with torch.no_grad():
    found = [features(form) for form in {FORMS}]
for other in found[1:]:
    torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
assert "equimod" not in sys.modules
"""
"""Loads an encoder in each form as its card says."""
FOLDERS = ("pipelines", "models", "train", "tools", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, so that no build folder is left in it."""
    copy = tmp_path_factory.mktemp("checkout") / "any-name"
    copy.mkdir()
    for name in (*FOLDERS, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)],
        check=True,
        capture_output=True,
    )
    return next((copy / "dist").glob("*.whl"))


def test_the_wheel_holds_only_equimod(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"equimod"}
    assert {name.split("/")[1] for name in names if name.startswith("equimod/")} == set(FOLDERS)


def test_the_wheel_holds_every_module_and_recipe(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    wanted += (ROOT / "train" / "recipes").glob("*.yaml")
    wanted += (ROOT / "train" / "launch").glob("*.sbatch")
    wanted += (ROOT / "train" / "html_report").glob("*.jinja")
    assert not [path for path in wanted if f"equimod/{path.relative_to(ROOT).as_posix()}" not in held]


def test_the_installed_wheel_reads_its_recipes_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from equimod.train import config\n"
        "assert config.parse(['--method', 'simclr', '--equimod']).dataset == 'shapes'\n"
        "print(config.__file__)"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert answer.stdout.startswith(str(tmp_path / "site"))


@pytest.mark.ci
def test_the_installed_wheel_trains_evaluates_and_exports_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """By the command `equimod`, in one process and in two."""
    needs("timm")
    needs("onnx")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    folder = tmp_path / "empty"
    folder.mkdir()

    def equimod(*words: str) -> str:
        command = [sys.executable, "-m", "equimod.tools.cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    equimod("draw", "photos", "--samples", "24")
    small = [
        "encoder.arch=resnet10",
        "encoder.width=64",
        "encoder.stem=imagenet",
        "epochs=2",
        "optim.warmup_epochs=1",
        "batch_size=8",
    ]
    training = ["train", "--method", "simclr", "--data", "photos", "--val", "photos", *small, "system.workers=1"]
    assert "evaluate it with: equimod evaluate runs/simclr-photos" in equimod(*training)
    assert "knn_top1" in equimod("evaluate", "runs/simclr-photos", "--knn", "--workers", "1")
    assert "report: runs/simclr-photos/report.html" in equimod("report", "runs/simclr-photos", "--samples", "8")
    equimod("export", "runs/simclr-photos", "--to", *FORMS, "--output", "exported")
    loaded = subprocess.run([sys.executable, "-c", LOAD], cwd=folder, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    equimod("embed", "exported", "photos", "features.npz", "--device", "cpu")
    assert "nearest to" in equimod("neighbours", "features.npz", "0")
    assert "2 rank(s)" in equimod(*training, "--gpus", "2", "--system.device", "cpu", "--output", "both")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("both", "exported", "features.npz", "features.png", "photos", "runs")
    ]


@pytest.mark.parametrize("script", ["train/main.py", "train/evaluate.py", "tools/convert_imagenet.py"])
def test_a_script_runs_from_any_working_directory(script: str, tmp_path: Path) -> None:
    answer = subprocess.run([sys.executable, str(ROOT / script), "--help"], cwd=tmp_path, capture_output=True)
    assert answer.returncode == 0
    assert b"usage" in answer.stdout


def test_the_citation_names_the_version_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], citation["version"], citation["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
