"""What is told of the progress of something long, without a terminal."""

from __future__ import annotations

import re

import pytest

from equimod.train import progress
from equimod.train.progress import Progress, track


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)


def test_a_line_says_how_much_is_done_how_fast_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.0, 5.0, 10.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with Progress("converting", "images") as shown:
        shown.show(600, 2000)  # which an earlier run did
        shown.show(1600, 2000)
    assert capsys.readouterr() == ("", "converting: 1,600 of 2,000 images, 100 images/s, 4 s left\n")


def test_lines_of_a_log_go_to_stdout_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", "steps", total=10, done=4, log=True) as shown:
        shown.show(4, numbers="nothing yet")
        shown.show(5, numbers="loss 1.5")
        shown.say("saved")
    out, err = capsys.readouterr()
    assert re.fullmatch(r"training: 5 of 10 steps, loss 1\.5, \d+ s left\nsaved\n", out)
    assert err == ""


def test_lines_come_no_more_often_than_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(track(iter("abc"), 3, "features", "batches")) == ["a", "b", "c"]
    assert capsys.readouterr().err.count("\n") == 3
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 60.0)
    assert list(track(iter("abc"), 3, "features", "batches")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
