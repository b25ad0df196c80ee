"""tools/doctor.py and the choice of a backend: what is missing is said, with what mends it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from equimod.pipelines.backends import BACKENDS, BackendUnavailableError, choose
from equimod.pipelines.records import open_records
from equimod.tools import doctor
from equimod.train.main import main as train

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEASURED_SECONDS", 0.0)


def _break(monkeypatch: pytest.MonkeyPatch, module: str, error: Exception) -> None:
    """Make the import of a module, or of what lies in it, fail."""
    whole = importlib.import_module

    def fail(name: str, *arguments: Any) -> Any:
        if name.startswith(module):
            raise error
        return whole(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", fail)


@pytest.mark.parametrize(
    ("module", "line", "remedy"),
    [
        ("nvidia.dali", "dali", "pip install 'equimod[dali]'"),
        ("scipy", "scipy", "pip install 'equimod[imagenet]'"),
        ("kornia", "kornia", "pip install 'equimod[kornia]'"),
        ("apex", "apex", "from source"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(
    module: str, line: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(monkeypatch, module, ModuleNotFoundError(f"No module named {module!r}"))
    (finding,) = [finding for finding in doctor.findings(1000) if finding.name == line]
    assert finding.found is None
    assert remedy in str(finding)
    assert "missing" in str(finding)


@pytest.mark.parametrize(
    ("compiled", "line", "packages"),
    [("resize.KERNEL", "resizing", "apt-get install g++"), ("decode.LIBRARY", "regions", "libjpeg-dev g++")],
)
def test_what_was_not_compiled_is_said_with_its_packages(
    compiled: str, line: str, packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"equimod.pipelines.{compiled}", None)
    (finding,) = [finding for finding in doctor.findings(1000) if finding.name == line]
    assert finding.found is None
    assert packages in str(finding)


def test_an_extension_that_does_not_load_is_said_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise BackendUnavailableError("libopencv_core.so: cannot open shared object file")

    monkeypatch.setitem(BACKENDS, "ffcv", fail)
    (finding,) = [finding for finding in doctor.findings(1000) if finding.name == "ffcv"]
    assert "libopencv_core.so" in str(finding)


def test_training_cannot_run_without_the_decoder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    assert doctor.main() == 0
    _break(monkeypatch, "simplejpeg", ImportError("broken"))
    assert doctor.main() == 1
    assert "BROKEN" in capsys.readouterr().out


def test_a_compiler_that_is_missing_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    (finding,) = [finding for finding in doctor.findings(1000) if finding.name == "compiler"]
    assert "no g++ and no pkg-config" in str(finding)
    assert doctor.APT in str(finding)


def test_the_cores_are_worked_out_for_the_models_rate() -> None:
    lines = {rate: next(f.found for f in doctor.findings(rate) if f.name == "cores") for rate in (1.0, 1e6)}
    assert lines[1.0] is not None
    assert "1 images/s keeps 0.0" in lines[1.0]
    assert "keeps 0.0" not in str(lines[1e6])


@pytest.mark.parametrize(
    ("device", "raw", "installed", "backend", "word"),
    [
        (CPU, False, {"dali", "ffcv"}, "native", "on the CPU"),
        (GPU, False, {"dali"}, "native", "a core for each 800 images/s; --backend dali decodes on the GPU"),
        (GPU, True, {"dali"}, "native", "the fastest on the CPU"),
    ],
)
def test_auto_picks_by_device_records_and_packages(
    device: torch.device,
    raw: bool,
    installed: set[str],
    backend: str,
    word: str,
    image_tree: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "installed", lambda name: name in installed)
    records = open_records(image_tree)
    records.raw = raw
    choice = choose.choose(records, device)
    assert choice.backend == backend
    assert word in choice.reason


def test_a_backend_whose_package_is_missing_ends_a_run_before_it_begins(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "equimod.pipelines.backends.dali_backend", None)
    monkeypatch.setitem(sys.modules, "equimod.pipelines.backends.ffcv_backend", None)
    for backend in ("dali", "ffcv"):
        output = tmp_path / backend
        assert (
            train(
                [
                    "--method=simclr",
                    "--data",
                    str(image_tree),
                    "--backend",
                    backend,
                    "--output",
                    str(output),
                    "--batch-size=8",
                ]
            )
            == 2
        )
        assert f"pip install 'equimod[{backend}]'" in capsys.readouterr().err
        assert not output.exists()


def test_the_opening_lines_say_which_backend_and_why(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--method=simclr",
        "--data",
        str(image_tree),
        "--output",
        str(tmp_path / "run"),
        "--batch-size=8",
        "--epochs=1",
    ]
    options += ["--optim.warmup-epochs=0", "--system.device=cpu", "--encoder.width=8"]
    assert train(options) == 0
    assert "backend native: the fastest on the CPU" in capsys.readouterr().out
    assert "backend: native" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


def test_installed_asks_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda name: SimpleNamespace() if name == "ffcv" else None)
    assert (choose.installed("ffcv"), choose.installed("dali")) == (True, False)
