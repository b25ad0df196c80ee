"""What --log.to names gets a run's scalars, and can neither end a run nor hold it up.

The trackers here are small stand-ins; tests/peers/test_trackers.py has the true W&B and MLflow.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from faulty_train import with_fault
from small_runs import STEPS, events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from equimod.pipelines.timing import StageTimes
from equimod.train import loop, trackers
from equimod.train.config import Config, ConfigError, parse, read_recipe
from equimod.train.main import main
from equimod.train.report import Reporter
from equimod.train.time_spent import Clock

ONLY_IN_METRICS = {"event", "step", "epoch", "seconds", "thread_seconds"}


class Recorder:
    """A tracker that remembers what it was given."""

    place = "over there"

    def __init__(self, fault: str = "", step: int = 0) -> None:
        self.got: list[tuple[int, dict[str, float]]] = []
        self.ended: list[bool] = []
        self._fault, self._step, self._forever = fault, step, Event()
        self._fail("open")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        if step == self._step:
            self._fail("log")
        if step == self._step and self._fault == "hang":
            self._forever.wait(60)
        self.got.append((step, dict(scalars)))

    def close(self, complete: bool) -> None:
        self._fail("close")
        self.ended.append(complete)

    def _fail(self, where: str) -> None:
        if self._fault == where:
            raise ConnectionError("nobody answers\nat all")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a tracker stand in for each that is given, as if its package were there."""

    def install(**given: Callable[[], Recorder]) -> None:
        monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin=name))
        for name, make in given.items():
            monkeypatch.setitem(trackers.TRACKERS, name, lambda folder, make=make: make())

    return install


@pytest.fixture
def train(options: list[str], tmp_path: Path) -> Callable[..., int]:
    return lambda *more: main([*options, "--output", str(tmp_path / "run"), *more])


def test_trackers_get_what_tensorboard_gets(
    train: Callable[..., int], install: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb, mlflow = Recorder(), Recorder()
    install(wandb=lambda: wandb, mlflow=lambda: mlflow)
    assert train("--log.to", "wandb", "mlflow", "wandb") == 0
    steps = [event for event in events(tmp_path / "run") if event["event"] == "step"]
    scalars = [{key: event[key] for key in event.keys() - ONLY_IN_METRICS} for event in steps]
    assert wandb.got == mlflow.got == list(enumerate(scalars, 1))
    assert len(scalars) == STEPS
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == scalars[0].keys()
    assert wandb.ended == mlflow.ended == [True]
    assert capsys.readouterr().out.count("wandb: over there\n") == 1


def test_a_run_that_is_stopped_ends_as_not_complete(
    train: Callable[..., int], install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recorder()
    install(mlflow=lambda: tracker)
    monkeypatch.setattr(loop, "train_step", with_fault(loop.train_step, 6, "SIGTERM"))
    assert train("--log.to", "mlflow") == 143
    assert tracker.ended == [False]


@pytest.mark.parametrize("fault", ["open", "log", "close"])
def test_a_tracker_that_fails_is_one_line_and_the_run_goes_on(
    train: Callable[..., int],
    install: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    healthy = Recorder()
    install(wandb=lambda: Recorder(fault, step=3), mlflow=lambda: healthy)
    assert train("--log.to", "wandb", "mlflow") == 0
    out, err = capsys.readouterr()
    assert out.count("warning") == 1
    assert "warning: wandb gets no more of this run: nobody answers; metrics.jsonl holds all of it\n" in out
    assert "Traceback" not in err
    assert len(healthy.got) == STEPS
    assert (tmp_path / "run" / "encoder.safetensors").is_file()


def test_a_tracker_that_hangs_holds_nothing_up(
    train: Callable[..., int],
    install: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    tracker = Recorder("hang", step=3)
    install(wandb=lambda: tracker)
    assert train("--log.to", "wandb") == 0
    tracker._forever.set()
    assert capsys.readouterr().out.count("warning: wandb gets no more of this run: it does not answer within 0 s") == 1


def test_what_is_logged_after_a_fault_is_kept_nowhere() -> None:
    failed = Event()

    def fail() -> Any:
        raise OSError("no space left")

    tracker = trackers.Background("wandb", fail, lambda text: failed.set())
    assert failed.wait(10)
    tracker.log({"loss": 1.0}, 1)
    assert tracker._entries.empty()


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)], ids=["nothing", "W&B's folder `wandb`"])
def test_a_package_that_is_missing_is_one_line_with_the_command_that_installs_it(
    train: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    found: object,
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: found)
    assert train("--log.to", "wandb") == 2
    err = capsys.readouterr().err
    assert err == "error: log.to=wandb needs its package; pip install 'equimod[wandb]', or leave it out\n"
    assert not (tmp_path / "run").exists()


def test_other_ranks_than_the_first_open_no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {})
    config = parse(["--method", "simclr", "--log.to", "wandb"])
    with Reporter(None, Clock(StageTimes(), 1, 8), config, total_steps=1, start_step=0) as reporter:
        reporter.log(1, 0, 0.1, {"loss": 1.0})


def test_trackers_are_named_on_the_command_line_in_recipes_and_as_settings(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for words in (["--log.to", "wandb", "mlflow"], ["log.to=[wandb, mlflow]"]):
        config = parse(["--method", "simclr", *words])
        assert config.log.to == ("wandb", "mlflow")
        recipe.write_text(config.to_yaml(), encoding="utf-8")
        assert read_recipe(recipe) == config
    assert Config().log.to == ()
    recipe.write_text("method: simclr\nlog: {to: [neptune]}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"log\.to"):
        read_recipe(recipe)


def test_overwriting_a_run_forgets_the_runs_of_its_trackers(train: Callable[..., int], tmp_path: Path) -> None:
    assert train() == 0
    run = tmp_path / "run"
    (run / "wandb").mkdir()
    for name in trackers.ID_FILES:
        (run / name).write_text("of before")
    assert train("--overwrite") == 0
    assert not {"wandb", *trackers.ID_FILES} & {path.name for path in run.iterdir()}
    shutil.rmtree(run)
