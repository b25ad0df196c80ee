"""What a run reports: long ones stay quick to open, and resumed ones forget what is taken again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from equimod.pipelines.timing import StageTimes
from equimod.train import report
from equimod.train.config import parse
from equimod.train.report import Reporter, read_events
from equimod.train.time_spent import Clock


def _run(folder: Path, *, total: int, every: int, start: int = 0, stop: int | None = None) -> None:
    config = parse(["--method", "simclr", "--log.every", str(every)])
    with Reporter(folder, Clock(StageTimes(), 1, 8), config, total_steps=total, start_step=start) as reporter:
        for step in range(start + every, (stop or total) + 1, every):
            reporter.log(step, 0, 0.1, {"loss": float(step)})


def _drawn(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [point.step for point in events.Scalars("loss")]


def test_a_short_run_has_every_step_in_tensorboard(tmp_path: Path) -> None:
    _run(tmp_path, total=100, every=10)
    assert _drawn(tmp_path) == list(range(10, 101, 10))


def test_a_long_run_has_so_many_points_in_tensorboard_and_all_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_DRAWN", 20)
    _run(tmp_path, total=1005, every=10, stop=1000)
    drawn = _drawn(tmp_path)
    assert len(drawn) <= 20
    assert {step - before for before, step in itertools.pairwise(drawn)} == {50}
    assert [event["step"] for event in read_events(tmp_path / "metrics.jsonl")] == list(range(10, 1001, 10))


def test_the_last_step_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_DRAWN", 2)
    _run(tmp_path, total=100, every=10)
    assert _drawn(tmp_path) == [50, 100]
    monkeypatch.setattr(report, "MOST_DRAWN", 3)
    (tmp_path / "other").mkdir()
    _run(tmp_path / "other", total=100, every=10)
    assert _drawn(tmp_path / "other") == [40, 80, 100]


LINES = [{"event": "step", "step": n, "loss": 1.0, "lr": 0.1, "images_per_s": 1.0, "data_wait": 0.0} for n in (10, 20)]


def _lines(*events: Any) -> str:
    return "".join(event if isinstance(event, str) else json.dumps(event) + "\n" for event in events)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (_lines(*LINES), _lines(LINES[0]), ""),
        (_lines(LINES[0]), _lines(LINES[0]), ""),
        (_lines(LINES[0]) + '{"event": "st', _lines(LINES[0]), ""),
        (_lines(LINES[0]).strip(), _lines(LINES[0]), ""),
        (_lines(LINES[0], "[1]\n", LINES[1]), _lines(LINES[0]), "1 damaged line(s) left out"),
    ],
)
def test_a_resumed_run_forgets_what_it_takes_again_and_what_is_no_event(
    before: str, after: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(before)
    _run(tmp_path, total=20, every=10, start=10, stop=11)
    assert path.read_text() == after
    assert said in capsys.readouterr().out


def test_a_file_with_nothing_to_forget_is_not_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(_lines(*LINES))
    before = path.stat().st_ino
    _run(tmp_path, total=30, every=10, start=20, stop=21)
    assert path.stat().st_ino == before
