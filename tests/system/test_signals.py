"""Endings from outside: SIGTERM at any time, once or twice, and a launcher that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from small_runs import events

from equimod.train.checkpoint import Checkpoint, first_sound

SLEEPS = """\
import sys, time
from equimod.train import {module}
from equimod.train.main import main

def sleep(*arguments, **named):
    print("asleep", flush=True)
    time.sleep(60)

{module}.{name} = sleep
sys.exit(main(sys.argv[1:]))
"""
TRAIN = Path(__file__).parents[2] / "train" / "main.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait(until: Callable[[], object], seconds: float) -> bool:
    """Whether something comes about within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if until():
            return True
        time.sleep(0.05)
    return False


def _asleep_in(module: str, name: str) -> list[str]:
    return ["-c", SLEEPS.format(module=module, name=name)]


IMPORTS = """\
import contextlib, io, sys
from equimod.train.command import run_command

def command():
    with contextlib.redirect_stderr(io.StringIO()):  # as where recipes are read
        import deaf

sys.exit(run_command(command, again="do it again"))
"""
DEAF = """\
import time
print("asleep", flush=True)
try:
    time.sleep(20)
except BaseException:
    print("caught", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_an_import_that_would_catch_it_ends_the_process(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with _started(["-c", IMPORTS]) as process:
        assert process.stdout
        assert process.stdout.readline() == "asleep\n"
        process.send_signal(number)
        said, error = process.communicate(timeout=20)
    assert (process.returncode, said, error) == (code, "", "interrupted; do it again\n")


DEADLOCKED = """\
import ctypes, sys
from equimod.train.command import run_command

def command():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    print("asleep", flush=True)
    libc.pthread_mutex_lock(mutex)

sys.exit(run_command(command, again="do it again"))
"""


def test_a_process_that_runs_no_python_such_as_a_rank_that_waits_ends_all_the_same() -> None:
    with _started(["-c", DEADLOCKED]) as process:
        assert process.stdout
        assert process.stdout.readline() == "asleep\n"
        began = time.monotonic()
        process.terminate()
        _, error = process.communicate(timeout=20)
    assert time.monotonic() < began + 5
    assert (process.returncode, error) == (143, "interrupted; do it again\n")


@pytest.mark.parametrize("function", ["prepare", "build_train_state", "restore"])
def test_sigterm_while_a_run_starts_ends_it_at_once_and_leaves_nothing(
    options: list[str], tmp_path: Path, function: str
) -> None:
    output = tmp_path / "runs" / "run"
    command = [*_asleep_in("run", function), *options, "--output", str(output)]
    if function == "restore":
        whole = [sys.executable, str(TRAIN), *options, "--epochs", "2", "--output", str(output)]
        subprocess.run(whole, check=True, capture_output=True)
        command += ["--epochs", "2", "--resume", "auto"]
    before = sorted(output.rglob("*"))
    with _started(command) as process:
        assert process.stdout
        while process.stdout.readline() != "asleep\n":
            assert process.poll() is None, process.communicate()
        began = time.monotonic()
        process.terminate()
        _, error = process.communicate(timeout=20)
    assert time.monotonic() < began + 5
    assert process.returncode == 143
    assert error == "interrupted; go on from the newest checkpoint with --resume auto\n"
    assert sorted(output.rglob("*")) == before
    assert function == "restore" or list(tmp_path.iterdir()) == []


def test_a_second_sigterm_ends_a_run_whose_step_takes_long(options: list[str], tmp_path: Path) -> None:
    with _started([*_asleep_in("loop", "train_step"), *options, "--output", str(tmp_path / "run")]) as process:
        assert process.stdout
        while process.stdout.readline() != "asleep\n":
            assert process.poll() is None, process.communicate()
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):  # the step is to be finished
            process.wait(1)
        process.terminate()
        assert process.wait(timeout=5) == 143


def test_ranks_whose_launcher_is_killed_save_and_end(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = ["--epochs", "10000", "--log.every", "1", "--log.checkpoint-every", "1000000", "--output", str(run)]
    with _started([*TORCHRUN, str(TRAIN), *options, *long]) as launcher:
        assert _wait(lambda: (run / "metrics.jsonl").exists() and len(events(run)) > 3, 90)
        ranks = [child for child in psutil.Process(launcher.pid).children(recursive=True) if _is_rank(child)]
        assert len(ranks) == 2
        launcher.send_signal(signal.SIGKILL)
        assert _wait(lambda: not any(map(_is_alive, ranks)), 5)
    found = first_sound(run / "checkpoints", lambda path: Checkpoint.open(path).check(), print)
    assert found is not None
    steps = [event["step"] for event in events(run) if event["event"] == "step"]
    assert found.path.name == f"step-{steps[-1]:08d}"
    assert not list(run.rglob(".partial-*"))


def test_ranks_that_cannot_stop_are_gone_soon_after_their_launcher(options: list[str], tmp_path: Path) -> None:
    """The first step never ends."""
    script = tmp_path / "asleep.py"
    script.write_text(SLEEPS.format(module="loop", name="train_step"))
    with _started([*TORCHRUN, str(script), *options, "--output", str(tmp_path / "run")]) as launcher:
        assert launcher.stdout
        while launcher.stdout.readline() != "asleep\n":
            assert launcher.poll() is None, launcher.communicate()
        ranks = [child for child in psutil.Process(launcher.pid).children(recursive=True) if _is_rank(child)]
        assert len(ranks) == 2
        launcher.send_signal(signal.SIGKILL)
        assert _wait(lambda: not any(map(_is_alive, ranks)), 8)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_rank(process: psutil.Process) -> bool:
    return "--output" in process.cmdline()
