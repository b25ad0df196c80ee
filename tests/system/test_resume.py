"""Runs that are killed, stopped or moved to another number of ranks go on bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import run_ranks
from small_runs import OPTIONS, STEPS, events, losses, newest, same_end

from equimod.models.settings import METHOD_NAMES
from equimod.pipelines.timing import TRAINING
from equimod.train.main import main

TESTS = Path(__file__).parents[1]


def _faulty(options: list[str], step: int, fault: str, *, rank: int = 0, ranks: int = 1) -> list[tuple[int, str]]:
    """Run the ranks with a fault. Returns (exit code, stderr) of each."""
    command = [str(TESTS / "faulty_train.py"), str(step), fault, str(rank), *options]
    return run_ranks([command] * ranks)


def _left_alone(options: list[str], run: Path, ranks: int = 1) -> Path:
    """Run to the end, which nothing may be said about."""
    ended = _faulty([*options, "--output", str(run)], -1, "SIGKILL", ranks=ranks)
    assert [code for code, _ in ended] == [0] * ranks, ended
    assert ranks > 1 or ended == [(0, "")]
    return run


def _killed_and_resumed(options: list[str], run: Path, killed_at: int) -> Path:
    assert _faulty([*options, "--output", str(run)], killed_at, "SIGKILL")[0][0] == -9
    return _left_alone([*options, "--resume", "auto"], run)


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _left_alone(options, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_killed_run_resumes_bit_for_bit(options: list[str], alone: Path, tmp_path: Path, killed_at: int) -> None:
    """SIGKILL before the first checkpoint and in mid-epoch, a step after one."""
    killed = _killed_and_resumed(options, tmp_path / "killed", killed_at)
    assert same_end(alone, killed)
    assert losses(alone) == losses(killed)


@pytest.mark.parametrize(
    "method", ["byol", *(pytest.param(m, marks=pytest.mark.ci) for m in METHOD_NAMES if m not in ("simclr", "byol"))]
)
def test_a_killed_run_of_every_method_resumes_bit_for_bit(method: str, image_tree: Path, tmp_path: Path) -> None:
    """BYOL's target, its running statistics and its momentum are part of that, and so is what stands beside."""
    beside = ["--equimod", "--essl", "--rotation.hidden", "16", "--online-probe"]
    options = ["--method", method, *beside, "--data", str(image_tree), *OPTIONS]
    small = ["--byol.hidden", "16"] if method == "byol" else [f"--{method.replace('_', '-')}.hidden", "16"]
    options += [] if method == "none" else [*small, f"--{method.replace('_', '-')}.dim", "8"]
    alone = _left_alone(options, tmp_path / "alone")
    killed = _killed_and_resumed(options, tmp_path / "killed", 5)
    assert same_end(alone, killed)
    assert losses(alone) == losses(killed)


def test_a_killed_run_in_parts_with_a_gradient_scaler_resumes_bit_for_bit(options: list[str], tmp_path: Path) -> None:
    options = [*options, "--grad-cache", "2", "--precision", "fp16"]
    alone = _left_alone(options, tmp_path / "alone")
    assert same_end(alone, _killed_and_resumed(options, tmp_path / "killed", 7))


def test_a_run_on_growing_images_killed_in_mid_epoch_resumes_bit_for_bit(options: list[str], tmp_path: Path) -> None:
    """32 pixels in the first two epochs, 64 in the last two; killed a step behind the change."""
    options = [*options, "--resolution.start", "32", "--resolution.until", "0.5"]
    alone = _left_alone(options, tmp_path / "alone")
    assert same_end(alone, _killed_and_resumed(options, tmp_path / "killed", 7))


def test_three_ranks_one_killed_resume_bit_for_bit(options: list[str], tmp_path: Path) -> None:
    """Three, since the order of a sum of two cannot matter."""
    options = [*options, "--batch-size", "6"]
    alone, killed = _left_alone(options, tmp_path / "alone", ranks=3), tmp_path / "killed"
    ended = _faulty([*options, "--output", str(killed)], 7, "SIGKILL", rank=1, ranks=3)
    assert [code for code, _ in ended] == [1, -9, 1]
    _left_alone([*options, "--resume", "auto"], killed, ranks=3)
    assert same_end(alone, killed)
    assert losses(alone) == losses(killed)


# At a learning rate that does not make the last bits of a sum grow into differences within 12 steps.
STEADY = ["--precision", "fp32", "--log.checkpoint-every", "5", "--optim.lr", "0.01"]


@pytest.fixture(scope="module")
def steady(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _left_alone([*options, *STEADY], tmp_path_factory.mktemp("steady") / "run")


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 4, marks=pytest.mark.ci)])
def test_a_checkpoint_resumes_on_another_number_of_ranks_at_the_same_sample(
    options: list[str], steady: Path, tmp_path: Path, before: int, after: int
) -> None:
    options, moved = [*options, *STEADY], tmp_path / "moved"
    assert _faulty([*options, "--output", str(moved)], 6, "SIGKILL", ranks=before)[0][0] == -9
    _left_alone([*options, "--resume", "auto"], moved, ranks=after)
    steps, found = zip(*losses(moved), strict=True)
    expected_steps, expected = zip(*losses(steady), strict=True)
    assert steps == expected_steps
    assert found == pytest.approx(expected, rel=1e-3)  # float32 sums in another order, over some steps
    assert found[6:] != found[5:-1]


@pytest.fixture(scope="module")
def stopped(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks, one of which got a SIGTERM."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    ended = _faulty([*options, "--output", str(run)], 4, "SIGTERM", rank=1, ranks=2)
    assert [code for code, _ in ended] == [143, 143]
    return run


def test_sigterm_to_one_rank_saves_on_all_and_exits_143(stopped: Path) -> None:
    end = newest(stopped / "checkpoints")
    assert end is not None
    assert json.loads((end / "state.json").read_text())["cursor"] == {"epoch": 1, "step": 2}


def test_a_stopped_run_and_its_resume_tell_the_time_of_their_own_process(
    options: list[str], stopped: Path, tmp_path: Path
) -> None:
    """Of two ranks, one tells; it is about its own half of the images."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    [before] = (event for event in events(run) if event["event"] == "time")
    assert (before["step"], before["images"]) == (5, 5 * 8 // 2)
    assert main([*options, "--output", str(run), "--resume", "auto"]) == 0
    again, resumed = (event for event in events(run) if event["event"] == "time")
    assert again == before
    assert (resumed["step"], resumed["images"]) == (STEPS, (STEPS - 5) * 8)
    assert sum(resumed["stages"][name]["seconds"] for name in TRAINING) <= resumed["wall_seconds"]


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
    assert len(losses(tmp_path / "run")) == STEPS


def test_a_validation_beside_two_ranks_leaves_no_trace(image_tree: Path, tmp_path: Path) -> None:
    options = ["--method", "simclr", "--equimod", *OPTIONS, "--data", str(image_tree), "--val", str(image_tree)]
    without = _left_alone(options, tmp_path / "without", ranks=2)
    validated = _left_alone([*options, "--log.validate-every", "5"], tmp_path / "with", ranks=2)
    assert same_end(without, validated)
    assert [event["step"] for event in events(validated) if event["event"] == "validation"] == [5, 10, 12]
