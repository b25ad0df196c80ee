"""Where the scalars of a run go beside its folder: Weights & Biases and MLflow, named by `--log.to`.

Each has a thread of its own that waits for it: a server that is away, or a full disk, neither ends a training nor has
its ranks wait for the first. What a tracker did not get is in metrics.jsonl all the same.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import yaml

from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import EquimodError
from equimod.train.config import CONFIG, ConfigError

PROJECT = "equimod"  # of W&B, experiment of MLflow, where the environment names no other
CLOSE_SECONDS = 30.0  # that the end of a run waits for a tracker
ID_FILES = ("wandb.id", "mlflow.id")
"""In the run's folder: which run of the tracker it is, so that a resumed run goes on in it."""


class Tracker(Protocol):
    """A run of a tracker, new or gone on with. Any method may take long, and raise anything."""

    place: str  # where people find it

    def log(self, scalars: Mapping[str, float], step: int) -> None: ...

    def close(self, complete: bool) -> None:
        """End the run of the tracker; `complete`: the training took all its steps."""
        ...


class TrackerError(EquimodError):
    """What a tracker needs and lacks: the message says the remedy, in one line."""


def require_trackers(names: Iterable[str]) -> None:
    """Raise ConfigError where the package of a tracker is not installed. None of them is imported."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # W&B names a folder `wandb` too, which passes for a package
            raise ConfigError(f"log.to={name} needs its package; pip install 'equimod[{name}]', or leave it out")


class Background:
    """A tracker in a thread of its own, which opens it, hands it what is logged and closes it.

    The first thing that goes wrong is told to `say`, in one line, and ends it.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self._name, self._open, self._say = name, open_tracker, say
        self._entries: SimpleQueue[tuple[Mapping[str, float], int] | None] = SimpleQueue()
        self._complete = self._given_up = False
        self._thread = Thread(target=self._work, name=f"equimod-{name}", daemon=True)
        self._thread.start()

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Hand on what step `step` gave. Returns at once."""
        if not self._given_up:
            self._entries.put((scalars, step))

    def end(self, complete: bool) -> None:
        """Tell the tracker to close once it has everything. Returns at once."""
        self._complete = complete
        self._entries.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until the tracker is closed, for so long at most."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._give_up(f"it does not answer within {CLOSE_SECONDS:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._open()
            self._say(f"{self._name}: {tracker.place}")
            while (entry := self._entries.get()) is not None:
                tracker.log(*entry)
            tracker.close(self._complete)
        except Exception as error:
            self._give_up((str(error).strip().splitlines() or [type(error).__name__])[0])

    def _give_up(self, reason: str) -> None:
        if not self._given_up:
            self._given_up = True
            self._say(f"warning: {self._name} gets no more of this run: {reason}; metrics.jsonl holds all of it")


class Wandb:
    """A run of Weights & Biases, whose files lie in the run's folder; WANDB_MODE=offline needs no server."""

    def __init__(self, folder: Path) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", finish_timeout=CLOSE_SECONDS - 5, finish_timeout_raises=True
        )
        online = wandb.setup(settings).settings.mode == "online"
        if online and not wandb.login(prompt=False, verify=False):
            raise TrackerError("it has no API key; run wandb login, or set WANDB_MODE=offline")
        known = _known_run(folder / "wandb.id")
        name = known or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=None if known else folder.name,
            dir=folder,
            id=name,
            resume="allow",
            config=_settings(folder),
            allow_val_change=True,
            settings=settings,
        )
        _keep(folder / "wandb.id", name)
        self.place = str((online and self._run.url) or self._run.dir)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client, self._metric = MlflowClient(), Metric
        known = _known_run(folder / "mlflow.id")
        if known:
            self._id = known
            self._client.update_run(known, status="RUNNING")
        else:
            self._id = self._client.create_run(self._experiment(), run_name=folder.name).info.run_id
            settings = [Param(key, str(value)) for key, value in _leaves(_settings(folder))]
            self._client.log_batch(self._id, params=settings)
            _keep(folder / "mlflow.id", self._id)
        self.place = f"run {self._id} in {self._client.tracking_uri}"

    def _experiment(self) -> str:
        if "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[self._metric(name, v, now, step) for name, v in scalars.items()])

    def close(self, complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"wandb": Wandb, "mlflow": MLflow}


def open_trackers(names: Iterable[str], folder: Path, say: Callable[[str], None]) -> list[Background]:
    """The trackers of the run in `folder`; they tell `say` where they are, and what goes wrong."""
    return [Background(name, partial(TRACKERS[name], folder), say) for name in dict.fromkeys(names)]


def close_trackers(trackers: Sequence[Background], complete: bool) -> None:
    """Have the trackers take what is left, for CLOSE_SECONDS at most; `complete`: the training took all its steps."""
    for tracker in trackers:
        tracker.end(complete)
    until = time.monotonic() + CLOSE_SECONDS
    for tracker in trackers:
        tracker.wait(max(0.0, until - time.monotonic()))


def _settings(folder: Path) -> dict[str, Any]:
    """The settings in the run's config.yaml."""
    settings: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    return settings


def _known_run(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _keep(file: Path, run: str) -> None:
    with durable_file(file) as out:
        out.write(run.encode())


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings as on a command line, such as ("optim.lr", 3.0)."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
