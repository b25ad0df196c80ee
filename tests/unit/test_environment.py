"""A run goes on only with the code and the libraries that it was begun with, as far as they may move its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from equimod.train import run_folder
from equimod.train.environment import _SURROUNDINGS, Environment, OtherEnvironmentError, code_digests
from equimod.train.main import main


def _other(here: Environment, **changes: str) -> Environment:
    """With these versions of libraries and of others, and these files of code, "/" written as "__"."""
    names = {name.replace("__", "/") + ".py" * ("__" in name): value for name, value in changes.items()}
    parts = {
        part: {name: names.get(name, value) for name, value in getattr(here, part).items()}
        for part in ("libraries", "others", "code")
    }
    return replace(here, **parts)


def test_every_file_of_code_is_known_by_its_path() -> None:
    code = code_digests()
    assert {"models/losses.py", "pipelines/ops.py", "pipelines/records/tar.py", "train/loop.py"} <= code.keys()
    assert not [name for name in code if not name.startswith(("models/", "pipelines/", "train/"))]


def test_code_that_is_replaced_under_a_process_is_not_taken_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint says what computed it, not what lies on the disk when it is written."""
    before = Environment.here("native")
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"of another commit")
    assert Environment.here("native") == before
    assert code_digests() == before.code


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"torch": "2.9.0"}, r"torch \S+ \(was 2\.9\.0\)"),
        ({"pillow": "1"}, r"pillow \S+ \(was 1\)"),
        ({"pipelines__ops": "1", "models__losses": "2"}, r"models/losses\.py, pipelines/ops\.py"),
        ({"train__lars": "1"}, r"train/lars\.py"),
    ],
)
def test_what_may_move_numbers_is_refused_by_name(changes: dict[str, str], named: str) -> None:
    here = Environment.here("native")
    with pytest.raises(OtherEnvironmentError, match=f"may move: {named}; the remedy"):
        here.refuse(_other(here, **changes), "the remedy")


def test_what_may_not_is_said_alone() -> None:
    here = Environment.here("native")
    files = ("pipelines/cores.py", "pipelines/workers.py", "train/report.py", "train/signals.py")
    before = _other(here, python="3.10.0", **{name.removesuffix(".py").replace("/", "__"): "1" for name in files})
    here.refuse(before, "")
    assert [change.partition(" (")[0] for change in here.changes(before)] == [f"python {here.others['python']}", *files]
    assert here.changes(here) == []


def test_the_surroundings_are_files_that_there_are_and_none_of_what_computes() -> None:
    code = code_digests()
    assert not [start for start in _SURROUNDINGS if not any(name.startswith(start) for name in code)]
    surroundings = {name for name in code if name.startswith(_SURROUNDINGS)}
    assert not [name for name in surroundings if name.startswith("models/")]
    reading = {f"pipelines/conversion/archive_{name}.py" for name in ("records", "source")}
    reading |= {name for name in code if name.startswith("pipelines/records/") and not name.endswith("/manifest.py")}
    running = {f"train/{name}.py" for name in ("data", "distributed", "grad_cache", "lars", "loop", "run", "schedule")}
    assert reading | running < code.keys() - surroundings


def test_a_backend_counts_its_own_library() -> None:
    assert "ffcv" in Environment.here("ffcv").libraries
    assert "ffcv" not in Environment.here("native").libraries


def test_a_run_of_other_code_goes_on_when_told_to_and_says_so(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options = [*options, "--output", str(run)]
    assert main(options) == 0
    here = Environment.here("native")
    later = _other(here, pipelines__ops="of another commit")
    monkeypatch.setattr(run_folder.Environment, "here", lambda backend, timm: later)
    capsys.readouterr()
    assert main([*options, "--resume", "auto"]) == 1
    error = capsys.readouterr().err
    assert "pipelines/ops.py; install what it had, or go on with --resume-anyway" in error
    assert error.count("\n") == 1
    assert main([*options, "--resume", "auto", "--resume-anyway"]) == 0
    assert "other than at the checkpoint: pipelines/ops.py" in capsys.readouterr().out
    assert "resume_anyway: false" in (run / "config.yaml").read_text()
