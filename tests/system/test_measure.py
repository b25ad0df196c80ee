"""Contenders take turns in processes of their own. Nothing here imports torch, so those processes start quickly."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
