"""Contenders take turns in processes of their own. Nothing here imports torch, so those processes start quickly."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from equimod.benchmarks import measure
from equimod.benchmarks.measure import Round, Spread, Workload, interleave, ratio


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes find this module again, wherever pytest was started."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


def _pid(settings: Path) -> Workload:
    """A contender that notes its process and its turns in the file `settings`."""

    def load(epoch: int) -> Iterator[int]:
        with settings.open("a") as file:
            file.write(f"{os.getpid()} {epoch}\n")
        yield 10

    return load


def _with_others(settings: Path) -> Workload:
    """A contender that notes how many processes of other contenders are alive."""

    def load(epoch: int) -> Iterator[int]:
        parent = Path(f"/proc/{os.getppid()}/task")
        children = {pid for task in parent.iterdir() for pid in (task / "children").read_text().split()}
        programs = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children - {str(os.getpid())}]
        with settings.open("a") as file:
            file.write(f"{sum(b'spawn_main' in program for program in programs)}\n")
        yield 10

    return load


def _burns_in_a_child(settings: float) -> Workload:
    """A contender whose work is done by a child process, which takes `settings` seconds of processor time."""

    def burn() -> None:
        while time.process_time() < settings:
            pass
        done.set()
        time.sleep(60)  # alive when it is measured, as the workers of a DataLoader are

    context = multiprocessing.get_context("fork")
    done = context.Event()

    def load(epoch: int) -> Iterator[int]:
        done.clear()
        context.Process(target=burn, daemon=True).start()
        done.wait()
        yield 10

    return load


def _slow_to_start(settings: float) -> Workload:
    """A contender that takes `settings` seconds to be built, and as long for each of its two batches."""
    time.sleep(settings)

    def load(epoch: int) -> Iterator[int]:
        for _ in range(2):
            time.sleep(settings)
            yield 10

    return load


def _fails(settings: Path) -> Workload:
    raise OSError(f"cannot read {settings}")


def test_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    speeds = [(100.0, 50.0), (30.0, 60.0), (90.0, 30.0)]
    rounds = [
        {
            "a": Round(100, 100 / a, cpu_seconds=1.0, peak_bytes=0, first_batch_seconds=0.0),
            "b": Round(100, 100 / b, 1.0, 0, 0.0),
        }
        for a, b in speeds
    ]
    found = ratio(rounds, "a", "b")
    assert (found.median, found.low, found.high) == pytest.approx((2.0, 0.5, 3.0))


def test_spread_holds_median_lowest_and_highest() -> None:
    assert Spread.of(iter([5.0, 1.0, 2.0])) == Spread(median=2.0, low=1.0, high=5.0)


def test_contenders_take_turns_in_rotating_order_each_in_its_own_process(tmp_path: Path) -> None:
    log = tmp_path / "turns"
    rounds = list(interleave({"a": _pid, "b": _pid}, log, rounds=2))
    assert [sorted(turns) for turns in rounds] == [["a", "b"]] * 3  # the first is the warm-up
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [epoch for _, epoch in lines] == ["0", "0", "1", "1", "2", "2"]
    a, b = lines[0][0], lines[1][0]
    assert a != b
    assert [pid for pid, _ in lines] == [a, b, b, a, a, b]


def test_alone_every_turn_has_a_process_of_its_own_that_ends_before_the_next(tmp_path: Path) -> None:
    log = tmp_path / "turns"
    rounds = list(interleave({"a": _pid, "b": _pid}, log, rounds=2, alone=True))
    assert [sorted(turns) for turns in rounds] == [["a", "b"]] * 3
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [epoch for _, epoch in lines] == ["0", "1", "0", "1", "0", "2", "0", "2"]
    pids = [pid for pid, _ in lines]
    assert pids[::2] == pids[1::2]
    assert len(set(pids)) == 4
    log.unlink()
    list(interleave({"a": _with_others, "b": _with_others}, log, rounds=2, alone=True))
    assert set(log.read_text().split()) == {"0"}


def test_a_gpu_is_timed_by_its_events_and_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream is at 5 s when the turn starts; each batch takes 2 s there, and next to nothing on the host."""
    notes: list[str] = []
    gpu = SimpleNamespace(now=5.0)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = gpu.now

        def synchronize(self) -> None:
            notes.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    def batches() -> Iterator[int]:
        for _ in range(3):
            gpu.now += 2
            yield 10

    cuda = SimpleNamespace(
        Event=Event,
        synchronize=lambda: notes.append("wait"),
        reset_peak_memory_stats=lambda: notes.append("reset"),
        max_memory_allocated=lambda: 42,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    turn = measure._turn(batches(), measure.GPUClock())
    assert (turn.images, turn.seconds, turn.first_batch_seconds, turn.gpu_peak_bytes) == (30, 6.0, 2.0, 42)
    assert notes == ["wait", "reset", "wait", "wait"]  # behind the first batch and behind the last


def test_error_of_a_contender_is_raised_to_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot read"):
        next(interleave({"a": _fails}, tmp_path, rounds=1))


def test_processor_time_of_child_processes_counts() -> None:
    for turns in interleave({"a": _burns_in_a_child}, 0.2, rounds=1):
        assert turns["a"].cpu_seconds > 0.2


def test_first_batch_is_timed_from_the_start_of_the_turn_and_at_first_with_the_building() -> None:
    warm_up, later = interleave({"a": _slow_to_start}, 0.2, rounds=1)
    for turn, waits in ((warm_up["a"], 2), (later["a"], 1)):
        assert turn.images == 20
        assert 0.2 * waits <= turn.first_batch_seconds <= turn.seconds - 0.2
