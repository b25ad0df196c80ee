"""Whole runs: what they leave behind, and that a killed one resumes bit for bit."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file

from equimod.models.encoder import Encoder
from equimod.pipelines.durable import locked
from equimod.train import checkpoint
from equimod.train.checkpoint import newest
from equimod.train.config import METHODS, read_recipe
from equimod.train.main import main

TESTS = Path(__file__).parents[1]
STEPS = 12  # 24 images in batches of 8 make 3 steps an epoch

RECIPE = """
extends: {recipe}
epochs: 4
batch_size: 8
encoder: {{arch: resnet10, width: 8}}
simclr: {{hidden: [16], dim: 8}}
equivariance: {{projector: [16, 8], embedding: [8]}}
optim: {{warmup_epochs: 1, lr: 0.5}}
log: {{every: 1, checkpoint_every: 2}}
system: {{workers: 1}}
"""


SMALL = [
    "--epochs",
    "4",
    "--batch-size",
    "8",
    "--encoder.arch",
    "resnet10",
    "--encoder.width",
    "8",
    "--equivariance.projector",
    "16",
    "8",
    "--equivariance.embedding",
    "8",
    "--optim.warmup-epochs",
    "1",
    "--optim.lr",
    "0.5",
    "--log.every",
    "1",
    "--log.checkpoint-every",
    "2",
    "--system.workers",
    "1",
]


@pytest.fixture
def options(image_tree: Path, tmp_path: Path) -> list[str]:
    """Options of a run of 12 steps on the small tree, without --output."""
    recipe = tmp_path / "tiny.yaml"
    shapes = TESTS.parent / "train" / "recipes" / "simclr_equimod_shapes.yaml"
    recipe.write_text(RECIPE.format(recipe=os.path.relpath(shapes, tmp_path)), encoding="utf-8")
    return ["--config", str(recipe), "--data", str(image_tree)]


def _events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _losses(run: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in _events(run) if event["event"] == "step"]


def _end(run: Path) -> tuple[str, bytes, bytes]:
    """The last step of a run and the bytes of its model and optimizer."""
    end = newest(run / "checkpoints")
    assert end is not None
    return end.name, (end / "model.safetensors").read_bytes(), (end / "optimizer.safetensors").read_bytes()


def _same_end(a: Path, b: Path) -> bool:
    return _end(a) == _end(b)  # compared out of sight of pytest, which would print megabytes of difference


def _faulty(options: list[str], step: int, fault: str, *, rank: int = 0, ranks: int = 1) -> list[tuple[int, str]]:
    """Run the ranks with a fault. Returns (exit code, stderr) of each."""
    command = [str(TESTS / "faulty_train.py"), str(step), fault, str(rank), *options]
    return run_ranks([command] * ranks)


def test_a_run_leaves_everything_the_design_names(options: list[str], tmp_path: Path, image_tree: Path) -> None:
    run = tmp_path / "run"
    assert main([*options, "--output", str(run), "--val", str(image_tree)]) == 0
    config = read_recipe(run / "config.yaml")
    assert (config.epochs, config.data, config.val) == (4, image_tree, image_tree)
    events = _events(run)
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, STEPS + 1))
    first = events[0]
    assert first["loss"] == pytest.approx(first["invariance"] + first["equivariance"], rel=1e-5)
    assert {"lr", "epoch", "images_per_s", "data_wait"} <= first.keys()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["newest", "step-00000010", "step-00000012"]
    assert list((run / "tensorboard").iterdir())
    state = load_file(run / "encoder.safetensors")
    Encoder(config.encoder).load_state_dict(state)
    last = load_file(run / "checkpoints" / "step-00000012" / "model.safetensors")
    assert all(torch.equal(value, last[f"encoder.{name}"]) for name, value in state.items())
    assert {"equimod.standardizer.mean", "equimod.standardizer.std"} <= last.keys()
    assert not list(run.rglob("*.pt")) + list(run.rglob("*.pkl")) + list(run.rglob(".partial-*"))


@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_killed_run_resumes_bit_for_bit(options: list[str], tmp_path: Path, killed_at: int) -> None:
    """SIGKILL before the first checkpoint and in mid-epoch, a step after one."""
    alone, killed = ["--output", str(tmp_path / "alone")], ["--output", str(tmp_path / "killed")]
    assert _faulty([*options, *alone], -1, "SIGKILL") == [(0, "")]
    assert _faulty([*options, *killed], killed_at, "SIGKILL")[0][0] == -9
    assert _faulty([*options, *killed, "--resume", "auto"], -1, "SIGKILL") == [(0, "")]
    assert _same_end(tmp_path / "alone", tmp_path / "killed")
    assert _losses(tmp_path / "alone") == _losses(tmp_path / "killed")


@pytest.mark.parametrize("method", [m for m in METHODS if m != "simclr"])
def test_a_killed_run_of_every_method_resumes_bit_for_bit(method: str, image_tree: Path, tmp_path: Path) -> None:
    """BYOL's target, its running statistics and its momentum are part of that, and so is what stands beside."""
    beside = ["--equimod", "--essl", "--rotation.hidden", "16", "--online-probe"]
    options = ["--method", method, *beside, "--data", str(image_tree), *SMALL]
    small = ["--byol.hidden", "16"] if method == "byol" else [f"--{method.replace('_', '-')}.hidden", "16"]
    options += [] if method == "none" else [*small, f"--{method.replace('_', '-')}.dim", "8"]
    alone, killed = ["--output", str(tmp_path / "alone")], ["--output", str(tmp_path / "killed")]
    assert _faulty([*options, *alone], -1, "SIGKILL") == [(0, "")]
    assert _faulty([*options, *killed], 5, "SIGKILL")[0][0] == -9
    assert _faulty([*options, *killed, "--resume", "auto"], -1, "SIGKILL") == [(0, "")]
    assert _same_end(tmp_path / "alone", tmp_path / "killed")
    assert _losses(tmp_path / "alone") == _losses(tmp_path / "killed")


def test_three_ranks_one_killed_resume_bit_for_bit(options: list[str], tmp_path: Path) -> None:
    """Three, since the order of a sum of two cannot matter."""
    options = [*options, "--batch-size", "6"]
    alone, killed = ["--output", str(tmp_path / "alone")], ["--output", str(tmp_path / "killed")]
    assert [code for code, _ in _faulty([*options, *alone], -1, "SIGKILL", ranks=3)] == [0] * 3
    codes = [code for code, _ in _faulty([*options, *killed], 7, "SIGKILL", rank=1, ranks=3)]
    assert (codes[0], codes[1], codes[2]) == (1, -9, 1)
    resumed = _faulty([*options, *killed, "--resume", "auto"], -1, "SIGKILL", ranks=3)
    assert [code for code, _ in resumed] == [0] * 3
    assert _same_end(tmp_path / "alone", tmp_path / "killed")
    assert _losses(tmp_path / "alone") == _losses(tmp_path / "killed")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4)])
def test_a_checkpoint_resumes_on_another_number_of_ranks_at_the_same_sample(
    options: list[str], tmp_path: Path, before: int, after: int
) -> None:
    # At a learning rate that does not make the last bits of a sum grow into differences within 12 steps.
    options = [*options, "--precision", "fp32", "--log.checkpoint-every", "5", "--optim.lr", "0.01"]
    alone, moved = ["--output", str(tmp_path / "alone")], ["--output", str(tmp_path / "moved")]
    assert _faulty([*options, *alone], -1, "SIGKILL") == [(0, "")]
    stopped = _faulty([*options, *moved], 6, "SIGKILL", ranks=before)
    assert stopped[0][0] == -9
    resumed = _faulty([*options, *moved, "--resume", "auto"], -1, "SIGKILL", ranks=after)
    assert [code for code, _ in resumed] == [0] * after
    steps, losses = zip(*_losses(tmp_path / "moved"), strict=True)
    expected_steps, expected = zip(*_losses(tmp_path / "alone"), strict=True)
    assert steps == expected_steps
    assert losses == pytest.approx(expected, rel=1e-3)  # float32 sums in another order, over some steps
    assert losses[6:] != losses[5:-1]


def test_a_killed_run_in_parts_resumes_bit_for_bit(options: list[str], tmp_path: Path) -> None:
    options = [*options, "--accumulate", "2"]
    alone, killed = ["--output", str(tmp_path / "alone")], ["--output", str(tmp_path / "killed")]
    assert _faulty([*options, *alone], -1, "SIGKILL") == [(0, "")]
    assert _faulty([*options, *killed], 5, "SIGKILL")[0][0] == -9
    assert _faulty([*options, *killed, "--resume", "auto"], -1, "SIGKILL") == [(0, "")]
    assert _same_end(tmp_path / "alone", tmp_path / "killed")


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


def test_sigterm_to_one_rank_saves_on_all_and_exits_143(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = _faulty([*options, "--output", str(run)], 4, "SIGTERM", rank=1, ranks=2)
    assert [code for code, _ in ended] == [143, 143]
    end = newest(run / "checkpoints")
    assert end is not None
    assert json.loads((end / "state.json").read_text())["cursor"] == {"epoch": 1, "step": 2, "seed": 0}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(
    options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    [(code, stderr)] = _faulty([*options, "--output", str(run)], 6, "nan")
    assert code == 1
    assert "nan in step 7" in stderr
    assert "learning rate" in stderr
    assert str(run / "checkpoints" / "step-00000006") in stderr
    assert "Traceback" not in stderr


def test_a_loss_that_is_not_finite_after_a_resume_names_the_checkpoint_it_came_from(
    options: list[str], tmp_path: Path
) -> None:
    output = ["--output", str(tmp_path / "run")]
    assert _faulty([*options, *output], 5, "SIGKILL")[0][0] == -9
    [(code, stderr)] = _faulty([*options, *output, "--resume", "auto"], 0, "nan")
    assert code == 1
    assert "nan in step 5" in stderr
    assert str(tmp_path / "run" / "checkpoints" / "step-00000004") in stderr


def test_a_folder_that_holds_a_run_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "run")]
    assert main([*options, *output]) == 0
    assert main([*options, *output]) == 2
    error = capsys.readouterr().err
    assert "--resume auto" in error
    assert "--overwrite" in error


def test_resuming_with_another_configuration_is_refused_by_key(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "run")]
    assert main([*options, *output]) == 0
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    assert main([*options, *output, "--resume", "auto", "--optim.lr", "3"]) == 2
    assert "optim.lr=3.0 (was 0.5)" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_overwrite_deletes_the_run_and_nothing_else(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*options, "--output", str(run)]) == 0
    (run / "notes.txt").write_text("mine")
    assert main([*options, "--output", str(run), "--overwrite", "--seed", "1"]) == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert (read_recipe(run / "config.yaml").seed, read_recipe(run / "config.yaml").overwrite) == (1, False)


def _content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "mistake", [["--data", "nowhere"], ["--batch-size", "100"], ["--seed", "1", "--val", "nowhere"]]
)
def test_overwrite_deletes_nothing_before_the_new_run_is_sure_to_start(
    options: list[str], tmp_path: Path, mistake: list[str]
) -> None:
    run = tmp_path / "run"
    assert main([*options, "--output", str(run)]) == 0
    before = _content(run)
    assert main([*options, "--output", str(run), "--overwrite", *mistake]) in (1, 2)
    assert _content(run) == before


def test_a_checkpoint_resumes_into_another_folder_but_not_into_another_run(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*options, "--output", str(first)]) == 0
    resume = ["--resume", str(first / "checkpoints" / "step-00000010")]
    assert main([*options, "--output", str(second), *resume]) == 0
    assert _same_end(first, second)
    before = _content(second)
    assert main([*options, "--output", str(second), *resume]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert _content(second) == before
    assert main([*options, "--output", str(tmp_path / "third"), *resume, "--seed", "5"]) == 2
    assert "seed=5 (was 0)" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_going_back_to_an_older_checkpoint_drops_the_newer_one(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*options, "--output", str(run)]) == 0
    end = _end(run)
    assert main([*options, "--output", str(run), "--resume", str(run / "checkpoints" / "step-00000010")]) == 0
    assert (_end(run) == end) is True
    assert [step for step, _ in _losses(run)] == list(range(1, STEPS + 1))


def test_resume_auto_finds_checkpoints_without_the_pointer(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*options, "--output", str(run)]) == 0
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


def test_torchrun_trains_on_two_ranks_from_any_working_directory(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    script = str(TESTS.parent / "train" / "main.py")
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", script, *options, "--output", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 rank(s)") == 1
    assert len(_losses(tmp_path / "run")) == STEPS


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


def test_a_gradient_scaler_resumes_bit_for_bit(options: list[str], tmp_path: Path) -> None:
    options = [*options, "--precision", "fp16"]
    alone, killed = ["--output", str(tmp_path / "alone")], ["--output", str(tmp_path / "killed")]
    assert _faulty([*options, *alone], -1, "SIGKILL")[0][0] == 0
    assert _faulty([*options, *killed], 7, "SIGKILL")[0][0] == -9
    assert _faulty([*options, *killed, "--resume", "auto"], -1, "SIGKILL")[0][0] == 0
    assert _same_end(tmp_path / "alone", tmp_path / "killed")


def test_without_equimod_no_x_is_read_and_nothing_of_it_is_saved(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*options, "--no-equimod", "--output", str(run)]) == 0
    assert not [name for name in load_file(newest(run / "checkpoints") / "model.safetensors") if "equimod" in name]  # type: ignore[operator]
    assert "equivariance" not in _events(run)[0]
