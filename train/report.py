"""What a run reports: metrics.jsonl, TensorBoard, trackers, and a progress bar or plain lines; on rank 0 only."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import one_line
from equimod.pipelines.progress import Progress, say
from equimod.pipelines.stored import open_regular
from equimod.train.trackers import close_trackers, open_trackers

if TYPE_CHECKING:  # torch takes seconds to import, which reading events does not need
    from equimod.train.config import Config
    from equimod.train.time_spent import Clock


MOST_DRAWN = 4000
"""Points of a curve in TensorBoard, which takes seconds to open a run with ten times as many."""


class Reporter:
    """Writes events and what `clock` counts. `folder` None: a rank that stays silent but counts all the same."""

    def __init__(self, folder: Path | None, clock: Clock, config: Config, *, total_steps: int, start_step: int) -> None:
        self._folder, self._clock, self._config, self._total = folder, clock, config, total_steps
        self._start_step = self._logged_step = start_step
        self._drawn_every = max(config.log.every, total_steps // MOST_DRAWN)
        self._drawn_step = start_step

    def __enter__(self) -> Reporter:
        self._open = ExitStack()
        if self._folder is not None:
            metrics = self._folder / "metrics.jsonl"
            _forget_after(metrics, self._start_step)
            self._metrics = self._open.enter_context(metrics.open("a", encoding="utf-8", buffering=1))
            from torch.utils.tensorboard import SummaryWriter

            self._open.enter_context(_thread_errors_once("tensorboard"))
            self._board = SummaryWriter(self._folder / "tensorboard", purge_step=self._start_step)
            self._open.callback(self._board.close)
            progress = Progress("training", "steps", total=self._total, done=self._start_step, log=True)
            self._progress = self._open.enter_context(progress)
            self._trackers = open_trackers(self._config.log.to, self._folder, self.say)
            self._open.callback(lambda: close_trackers(self._trackers, self._logged_step == self._total))
        self._began = self._logged = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def log(self, step: int, epoch: int, lr: float, losses: dict[str, float]) -> None:
        """Report that `step` steps of the run are done; `losses` are those of the last one."""
        now = time.perf_counter()
        elapsed = max(now - self._logged, 1e-9)
        lap = self._clock.lap(elapsed)
        event = {
            "event": "step",
            "step": step,
            "epoch": epoch,
            "lr": lr,
            **losses,
            "images_per_s": round(self._config.batch_size * (step - self._logged_step) / elapsed, 1),
            **lap,
        }
        self._logged, self._logged_step = now, step
        if self._folder is None:
            return
        self.event(event)
        scalars = {name: event[name] for name in (*losses, "lr", "images_per_s", "data_wait")}
        if step - self._drawn_step >= self._drawn_every or step == self._total:
            self._drawn_step = step
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(scalars, step)
        self._show(event)

    def validation(self, step: int, scores: dict[str, float]) -> None:
        """Report accuracies in percent, measured when `step` steps of the run were done."""
        if self._folder is None:
            return
        self.event({"event": "validation", "step": step, **scores})
        scalars = {f"validation/{name}": value for name, value in scores.items()}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(scalars, step)
        self.say(f"step {step}: {', '.join(f'{name} {value:.1f} %' for name, value in scores.items())}")

    def time_spent(self, step: int) -> None:
        """Report where the time went since the run began or was resumed, `step` steps of it done."""
        if self._folder is None:
            return
        spent = self._clock.spent(time.perf_counter() - self._began, step - self._start_step)
        self.event(spent.event(step))
        self.say(spent.title())
        self._progress.console.print(spent.table(), highlight=False)
        self.say(spent.limit)

    def event(self, event: dict[str, Any]) -> None:
        """Append one event to metrics.jsonl."""
        if self._folder is not None:
            self._metrics.write(json.dumps(event) + "\n")

    def sync(self) -> None:
        """Have all events so far on the disk, before a checkpoint says that their steps are done. Raises OSError."""
        if self._folder is not None:
            os.fsync(self._metrics.fileno())

    def say(self, text: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self._folder is not None:
            self._progress.say(one_line(text))

    def _show(self, event: dict[str, Any]) -> None:
        numbers = (
            f"epoch {event['epoch']}  loss {event['loss']:.4f}  {event['images_per_s']:.0f} images/s"
            f"  data wait {event['data_wait']:.1%}"
        )
        self._progress.show(event["step"], numbers=numbers)


@contextmanager
def _thread_errors_once(package: str) -> Iterator[None]:
    """Inside, the OSErrors that end threads of `package` are not printed: its next call raises them."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        is_its_own = type(arguments.thread).__module__.startswith(package)
        if not (is_its_own and isinstance(arguments.exc_value, OSError)):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def read_events(metrics: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl, as dictionaries; "event" is their kind. Raises OSError.

    Lines that are none are left out; it says how many, but for a last one that a kill cut in two.
    """
    events, damaged = _read(metrics)
    _tell_damaged(metrics, damaged)
    return events


def _tell_damaged(metrics: Path, lines: int) -> None:
    if lines:
        say(f"{metrics}: {lines:,} damaged line(s) left out")


def damaged_lines(metrics: Path) -> int:
    """How many lines of a metrics.jsonl are no events. Raises OSError."""
    return _read(metrics)[1]


def _read(metrics: Path) -> tuple[list[dict[str, Any]], int]:
    with open_regular(metrics) as file:
        *lines, cut = file.read().split(b"\n")
    events = [event for line in lines if (event := _event(line)) is not None]
    damaged = len(lines) - len(events)
    return events + [event for event in [_event(cut)] if event is not None], damaged


class _Event(msgspec.Struct, tag_field="event"):
    step: int


class _Step(_Event, tag="step"):
    loss: float
    lr: float
    images_per_s: float
    data_wait: float


class _Checkpoint(_Event, tag="checkpoint"):
    name: str


class _Validation(_Event, tag="validation"):
    pass


class _Time(_Event, tag="time"):
    wall_seconds: float


_FORM = msgspec.json.Decoder(_Step | _Checkpoint | _Validation | _Time)


def _event(line: bytes) -> dict[str, Any] | None:
    return None if _step_of(line) is None else msgspec.json.decode(line, type=dict[str, Any])


def _forget_after(metrics: Path, step: int) -> None:
    """Drop the events of steps that a resumed run will take again, and lines that are no events."""
    if not metrics.exists():
        return
    content = metrics.read_bytes()
    lines = content.split(b"\n")
    steps = [_step_of(line) for line in lines]
    _tell_damaged(metrics, steps[:-1].count(None))  # not the last one, which a kill may have cut in two
    found = zip(lines, steps, strict=True)
    new = b"".join(line + b"\n" for line, of_line in found if of_line is not None and of_line <= step)
    if new != content:
        with durable_file(metrics) as handle:
            handle.write(new)


def _step_of(line: bytes) -> int | None:
    """The step of an event, None where a line is none: an event itself takes many times as long to read."""
    try:
        step: int = _FORM.decode(line).step
        return step
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
