"""What is told of the progress of something long, on a terminal and without one."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fake_clock import FakeClock

from equimod.pipelines.progress import Progress, reading, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def a_terminal() -> Iterator[Terminal]:
    with pytest.MonkeyPatch.context() as patch, Terminal() as terminal:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", terminal)
        yield terminal


def test_a_line_says_how_much_is_done_how_fast_and_how_long_it_takes(
    clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("converting", "images", total=2000, done=600) as shown:  # which an earlier run did
        clock.seconds = 10.0
        shown.show(1600)
    assert capsys.readouterr() == ("", "converting: 1,600 of 2,000 images, 100 images/s, 4 s left\n")


def test_a_line_without_a_total_says_no_end(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("listing", "folders") as shown:
        clock.seconds = 10.0
        shown.show(50)
    assert capsys.readouterr().err == "listing: 50 folders, 5 folders/s\n"


@pytest.mark.parametrize(("done", "rate"), [(3, "0.15"), (33, "1.6"), (250, "12")])
def test_slow_work_has_a_rate_above_zero(
    done: int, rate: str, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("transfer", "penalties") as shown:
        clock.seconds = 20.0
        shown.show(done)
    assert capsys.readouterr().err == f"transfer: {done} penalties, {rate} penalties/s\n"


def test_nothing_is_told_of_work_that_ends_within_five_seconds(
    clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(49), 49, "features", "batches"):
        clock.wait(0.1)
    assert not clock.timers
    assert capsys.readouterr() == ("", "")


def test_after_five_seconds_a_line_comes_every_ten(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(36), 36, "features", "batches"):
        clock.wait(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" of")[0] for line in lines] == [f"features: {n}" for n in (4, 15, 25, 35)]


def test_a_first_step_that_takes_long_is_told_of_while_it_lasts(
    clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("training", "steps", total=10):
        clock.wait(4.9)
        assert capsys.readouterr().err == ""
        clock.wait(0.1)
        assert capsys.readouterr().err == "training: 0 of 10 steps\n"


def test_lines_of_a_log_go_to_stdout_with_its_numbers(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", "steps", total=10, done=4, log=True) as shown:
        clock.seconds = 6.0
        shown.show(5, numbers="loss 1.5")
        shown.say("saved")
    assert capsys.readouterr() == ("training: 5 of 10 steps, loss 1.5, 30 s left\nsaved\n", "")


def test_of_several_ranks_the_first_tells(
    clock: FakeClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with Progress("listing", "folders") as shown:
            clock.wait(6)
            shown.show(1)
        assert capsys.readouterr().err.count("\n") == lines


def test_on_a_terminal_one_line_is_rewritten_from_the_fifth_second_on(clock: FakeClock) -> None:
    with a_terminal() as terminal:
        with Progress("features", "batches", total=400) as shown:
            clock.wait(4)
            shown.show(100)
            assert terminal.getvalue() == ""
            for done in (200, 300, 400):
                clock.wait(4)
                shown.show(done)
        assert re.search(r"features .*400/400.* 25 batches/s", terminal.getvalue())
        assert terminal.getvalue().count("\n") == 1


def test_a_terminal_shows_the_last_step_too(clock: FakeClock) -> None:
    with a_terminal() as terminal:
        with Progress("features", "batches", total=400) as shown:
            clock.wait(6)
            shown.show(399)
            shown.show(400)  # too soon for another frame
        assert "400/400" in terminal.getvalue()


def test_what_is_read_of_a_file_is_told_in_mebibytes(clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytes(5 << 20)
    with reading(io.BytesIO(content), len(content), "unpacking") as file:
        assert file.read(1 << 20) == content[: 1 << 20]
        clock.seconds = 8.0
        assert file.read() == content[1 << 20 :]
    assert capsys.readouterr().err == "unpacking: 5 of 5 MiB, 0.62 MiB/s, 0 s left\n"
