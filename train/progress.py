"""How much of something is done, for people: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0

T = TypeVar("T")


class Progress:
    """To be used in a `with` block. `done` of `total` are done when it begins; the rate counts from there.

    `log` is for a command whose output is a log: its lines go to stdout, not to stderr, and show numbers of its own
    in place of the rate.
    """

    def __init__(self, what: str, unit: str, *, total: int | None = None, done: int = 0, log: bool = False) -> None:
        self._what, self._unit, self._total, self._first, self._log = what, unit, total, done, log
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self._began = self._line = time.monotonic()
        if sys.stderr.isatty():
            shown = (TextColumn("{task.fields[numbers]}"),) if self._log else (_Rate(self._unit),)
            before = () if self._log else (TextColumn("{task.description}"),)
            columns = (*before, BarColumn(), MofNCompleteColumn(), *shown, TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True)).__enter__()
            self._task = self._bar.add_task(self._what, total=self._total, completed=self._first, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def show(self, done: int, total: int | None = None, numbers: str = "") -> None:
        """Tell how much is done. `total` where it becomes known late; `numbers` are shown in place of the rate."""
        if self._total is None:  # what an earlier run did says nothing about speed
            self._first = done
        self._total = total or self._total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total, numbers=numbers)
            return
        now = time.monotonic()
        if done == self._first or now - self._line < SECONDS_BETWEEN_LINES:
            return
        self._line = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = f", {((self._total or done) - done) / rate:,.0f} s left"
        out = sys.stdout if self._log else sys.stderr
        told = numbers or f"{rate:,.0f} {self._unit}/s"
        print(f"{self._what}: {done:,} of {self._total or 0:,} {self._unit}, {told}{left}", file=out, flush=True)

    def say(self, text: str) -> None:
        """Print a line to stdout, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    @property
    def console(self) -> Console:
        """What tables are printed to, above the bar where there is one."""
        return self._bar.console if self._bar is not None else Console()


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


def track(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """The same items, showing how many of `total` were taken."""
    with Progress(what, unit, total=total) as progress:
        for done, item in enumerate(items, 1):
            yield item
            progress.show(done)
