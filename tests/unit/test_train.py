"""Whole runs: what they leave behind, what they refuse, and how they end. Kills: tests/system/test_resume.py."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_train import with_fault
from safetensors.torch import load_file
from small_runs import STEPS, events, losses, newest, same_end
from tensorboard.summary.writer.record_writer import RecordWriter

from equimod.models.encoder import build_encoder
from equimod.pipelines.durable import locked
from equimod.train import checkpoint, loop
from equimod.train.config import read_recipe
from equimod.train.main import main
from equimod.train.report import Reporter
from equimod.train.run import PreparedRun


@pytest.fixture(scope="module")
def finished(options: list[str], image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*options, "--output", str(run), "--val", str(image_tree)]) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with or to overwrite."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_everything_the_design_names(run: Path, image_tree: Path) -> None:
    config = read_recipe(run / "config.yaml")
    assert (config.epochs, config.data, config.val) == (4, (image_tree,), (image_tree,))
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
    first = events(run)[0]
    assert first["loss"] == pytest.approx(first["invariance"] + first["equivariance"], rel=1e-5)
    assert {"lr", "epoch", "images_per_s", "data_wait"} <= first.keys()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["newest", "step-00000010", "step-00000012"]
    assert list((run / "tensorboard").iterdir())
    state = load_file(run / "encoder.safetensors")
    build_encoder(config.encoder).load_state_dict(state)
    last = load_file(run / "checkpoints" / "step-00000012" / "model.safetensors")
    assert all(torch.equal(value, last[f"encoder.{name}"]) for name, value in state.items())
    assert {"equimod.standardizer.mean", "equimod.standardizer.std"} <= last.keys()
    assert not list(run.rglob("*.pt")) + list(run.rglob("*.pkl")) + list(run.rglob(".partial-*"))


def test_a_full_disk_is_one_line_with_the_remedy_and_keeps_the_last_checkpoint(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, as far as this process may write, once two checkpoints are there."""
    original, limit = checkpoint.rotate, resource.getrlimit(resource.RLIMIT_FSIZE)

    def rotate(folder: Path, name: str) -> None:
        original(folder, name)
        if name == "step-00000004":
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))

    monkeypatch.setattr(checkpoint, "rotate", rotate)
    run = tmp_path / "run"
    try:
        assert main([*options, "--output", str(run)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "make room" in error
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["newest", "step-00000002", "step-00000004"]


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [("fp32", "with a lower --optim.lr\n"), ("bf16", "with a lower --optim.lr or --precision fp32\n")],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(
    options: list[str],
    precision: str,
    remedy: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "train_step", with_fault(loop.train_step, 6, "nan"))
    run = tmp_path / "run"
    assert main([*options, "--precision", precision, "--output", str(run)]) == 1
    error = capsys.readouterr().err
    assert "nan in step 7" in error
    assert "learning rate" in error
    assert str(run / "checkpoints" / "step-00000006") in error
    assert error.endswith(remedy)
    assert error.count("\n") == 1


def test_a_loss_that_is_not_finite_after_a_resume_names_the_checkpoint_it_came_from(
    options: list[str], run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", with_fault(loop.train_step, 0, "nan"))
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    (run / "checkpoints" / "newest").unlink()
    assert main([*options, "--output", str(run), "--resume", "auto"]) == 1
    error = capsys.readouterr().err
    assert "nan in step 11" in error
    assert str(run / "checkpoints" / "step-00000010") in error


def test_a_folder_that_holds_a_run_is_refused(
    options: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--output", str(run)]) == 2
    error = capsys.readouterr().err
    assert "--resume auto" in error
    assert "--overwrite" in error


def test_resuming_with_another_configuration_is_refused_by_key(
    options: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "config.yaml").read_bytes()
    assert main([*options, "--output", str(run), "--resume", "auto", "--optim.lr", "3"]) == 2
    assert "optim.lr=3.0 (was 0.5)" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_overwrite_deletes_the_run_and_nothing_else(options: list[str], run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "report.html").write_text("of the run before")
    assert main([*options, "--output", str(run), "--overwrite", "--seed", "1"]) == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "report.html").exists()
    assert (read_recipe(run / "config.yaml").seed, read_recipe(run / "config.yaml").overwrite) == (1, False)


def _content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "mistake", [["--data", "nowhere"], ["--batch-size", "100"], ["--seed", "1", "--val", "nowhere"]]
)
def test_overwrite_deletes_nothing_before_the_new_run_is_sure_to_start(
    options: list[str], run: Path, mistake: list[str]
) -> None:
    before = _content(run)
    assert main([*options, "--output", str(run), "--overwrite", *mistake]) in (1, 2)
    assert _content(run) == before


def test_a_checkpoint_resumes_into_another_folder_but_not_into_another_run(
    options: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second"
    resume = ["--resume", str(finished / "checkpoints" / "step-00000010")]
    assert main([*options, "--output", str(second), *resume]) == 0
    assert same_end(finished, second)
    before = _content(second)
    assert main([*options, "--output", str(second), *resume]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert _content(second) == before
    assert main([*options, "--output", str(tmp_path / "third"), *resume, "--seed", "5"]) == 2
    assert "seed=5 (was 0)" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_going_back_to_an_older_checkpoint_drops_the_newer_one(options: list[str], finished: Path, run: Path) -> None:
    assert main([*options, "--output", str(run), "--resume", str(run / "checkpoints" / "step-00000010")]) == 0
    assert same_end(finished, run)
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))


def test_resume_auto_finds_checkpoints_without_the_pointer(options: list[str], run: Path) -> None:
    (run / "checkpoints" / "newest").unlink()
    assert main([*options, "--output", str(run), "--resume", "auto"]) == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["newest", "step-00000010", "step-00000012"]


def test_a_folder_takes_one_run_at_a_time(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with locked(run):
        assert main([*options, "--output", str(run)]) == 2
    assert "another process" in capsys.readouterr().err
    assert list(run.iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--batch-size", "100"], 2, "larger than the data"),
        (["--data", "nowhere"], 1, "nowhere"),
        (["--resume", "nowhere"], 1, "nowhere"),
    ],
)
def test_bad_input_gets_one_line(
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    code: int,
    message: str,
) -> None:
    assert main([*options, "--output", str(tmp_path / "run"), *extra]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_validation_set_of_other_classes_is_refused(
    options: list[str], tmp_path: Path, image_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val" / "zebra").mkdir(parents=True)
    source = next(image_tree.glob("*/*.jpg"))
    (tmp_path / "val" / "zebra" / "1.jpg").write_bytes(source.read_bytes())
    assert main([*options, "--output", str(tmp_path / "run"), "--val", str(tmp_path / "val")]) == 2
    assert "zebra" in capsys.readouterr().err


def test_without_equimod_no_x_is_read_and_nothing_of_it_is_saved(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*options, "--no-equimod", "--output", str(run)]) == 0
    assert not [name for name in load_file(newest(run / "checkpoints") / "model.safetensors") if "equimod" in name]
    assert "equivariance" not in events(run)[0]


def test_a_disk_that_is_full_for_tensorboard_is_one_line(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes in a thread of its own."""

    def full(self: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events")

    monkeypatch.setattr(RecordWriter, "write", full)
    assert main([*options, "--output", str(tmp_path / "run")]) == 1
    gc.collect()
    error = capfd.readouterr().err
    assert error.startswith("error: [Errno 28] No space left on device: 'events'; make room and go on from")
    assert error.count("\n") == 1


def test_weights_that_are_not_finite_are_not_saved_in_the_last_step_either(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses are those from before the update that spoils the weights."""
    spoiled = ["--optim.lr", "1e37", "--optim.trust-coefficient", "1e6", "--epochs", "1", "--batch-size", "24"]
    run = tmp_path / "run"
    assert main([*options, *spoiled, "--optim.warmup-epochs", "0", "--output", str(run)]) == 1
    error = capsys.readouterr().err
    assert "is not finite in step 1 (learning rate 1e+37); last good checkpoint: none; train anew" in error
    assert error.count("\n") == 1
    assert not (run / "checkpoints").exists()
    assert not (run / "encoder.safetensors").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["checkpoints", "figures", "encoder.safetensors", "metrics.jsonl"])
def test_a_folder_that_is_no_runs_is_left_alone(
    options: list[str], tmp_path: Path, name: str, overwrite: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one may have that keeps weights of other programs in checkpoints/."""
    own = tmp_path / "mine" / name / "resnet50" if "." not in name else tmp_path / "mine" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    more = ["--overwrite"] if overwrite else []
    assert main([*options, *more, "--output", str(tmp_path / "mine")]) == 2
    assert f"mine holds {name} and no config.yaml: it is no run's; give another --output" in capsys.readouterr().err
    assert own.read_text() == "mine"


def test_a_folder_of_ones_own_among_checkpoints_is_left_alone(options: list[str], run: Path) -> None:
    (run / "checkpoints" / "best").mkdir()
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    assert main([*options, "--output", str(run), "--resume", "auto"]) == 0
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best", "newest", "step-00000010", "step-00000012"]


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_run_does_not_go_among_its_images(
    options: list[str], image_tree: Path, inside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(image_tree.rglob("*"))
    assert main([*options, "--output", str(image_tree / inside)]) == 2
    assert "lies in the images of" in capsys.readouterr().err
    assert sorted(image_tree.rglob("*")) == before


def test_memory_that_is_not_there_is_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--output", str(tmp_path / "run"), "--simclr.dim", "100000000000"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: not enough memory (")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_log_is_on_the_disk_before_a_checkpoint_says_that_its_steps_are_done(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for owner, name in ((Reporter, "log"), (Reporter, "sync"), (PreparedRun, "save")):
        monkeypatch.setattr(owner, name, _told(getattr(owner, name), lambda name=name: order.append(name)))
    assert main([*options, "--output", str(tmp_path / "run"), "--epochs", "2", "--log.checkpoint-every", "3"]) == 0
    assert order == ["log", "log", "log", "sync", "save"] * 2


def _told(original: Callable[..., Any], tell: Callable[[], None]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        tell()
        return original(*arguments)

    return call
