"""How much of something is done, for people: a bar on a terminal, elsewhere a line now and then.

Whatever may take long on real data tells it here, so that a wait looks the same everywhere, and short ones are silent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock, Timer
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from equimod.pipelines.errors import one_line

if TYPE_CHECKING:  # rich takes a while to import, and most work ends before it is needed
    from rich.console import Console
    from rich.progress import Progress as Bar

QUIET_SECONDS = 5.0
"""Work that ends earlier is not told of."""
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.1

T = TypeVar("T")

_part_of_other_work: ContextVar[bool] = ContextVar("_part_of_other_work", default=False)


def say(text: str) -> None:
    """Print a line at once; names in it may hold anything."""
    print(one_line(text), flush=True)


@contextmanager
def part_of_other_work() -> Iterator[None]:
    """What is done inside is silent: it belongs to work that tells of itself."""
    token = _part_of_other_work.set(True)
    try:
        yield
    finally:
        _part_of_other_work.reset(token)


class Progress:
    """To be used in a `with` block. `done` of `total` are done when it begins; the rate counts from there.

    `total` None: nobody knows how much there is. Of several ranks, the first alone tells. `log` is for a command whose
    output is a log: its lines go to stdout, not to stderr, and show numbers of its own in place of the rate.
    """

    def __init__(self, what: str, unit: str, *, total: int | None = None, done: int = 0, log: bool = False) -> None:
        self._what, self._unit, self._total, self._log = what, unit, total, log
        self._first, self._done, self._numbers = done, done, ""
        self._told_by_another = os.environ.get("RANK", "0") != "0" or _part_of_other_work.get()
        self._lock = Lock()  # of what is shown: the timer below has a thread of its own
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self._began = monotonic()
        self._next = self._began + QUIET_SECONDS
        self._timer = Timer(QUIET_SECONDS, self._tell)  # the first step may take longer than that
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._next = float("inf")
            if self._bar is not None:
                self._draw(self._bar)
                self._bar.stop()

    def show(self, done: int, numbers: str = "") -> None:
        """Tell how much is done; `numbers` are shown in place of the rate."""
        self._done, self._numbers = done, numbers
        if monotonic() >= self._next:
            self._tell()

    def count(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; each counts as done when the next one is asked for."""
        for item in items:
            yield item
            self.show(self._done + 1)

    def say(self, text: str) -> None:
        """Print a line to stdout, above the bar where there is one."""
        with self._lock:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                print(text, flush=True)

    @property
    def console(self) -> Console:
        """What tables are printed to, above the bar where there is one."""
        from rich.console import Console

        return self._bar.console if self._bar is not None else Console()

    def _tell(self) -> None:
        with self._lock:
            now = monotonic()
            if now < self._next or self._told_by_another:
                return
            if sys.stderr.isatty():
                self._bar = self._bar or self._open_bar()
                self._draw(self._bar)
            else:
                print(self._line(now), file=sys.stdout if self._log else sys.stderr, flush=True)
            self._next = now + (SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_FRAMES)

    def _line(self, now: float) -> str:
        of_all = f" of {self._total:,}" if self._total else ""
        parts = [f"{self._what}: {self._done:,}{of_all} {self._unit}"]
        if self._done > self._first:
            parts.append(self._numbers or self._rate(now))
            if self._total:
                seconds = (now - self._began) / (self._done - self._first)
                parts.append(f"{(self._total - self._done) * seconds:,.0f} s left")
        return ", ".join(parts)

    def _rate(self, now: float) -> str:
        """To two digits where it is low, so that it is 0 only before anything is done."""
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        return f"{rate:,.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2g} {self._unit}/s"

    def _open_bar(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        what = () if self._log else (TextColumn("{task.description}"),)
        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeRemainingColumn()
        bar = Bar(*what, *columns, console=Console(stderr=True))
        bar.add_task(self._what, total=self._total or None, completed=self._first, numbers="")
        bar.start()
        return bar

    def _draw(self, bar: Bar) -> None:
        bar.update(bar.task_ids[0], completed=self._done, numbers=self._numbers or self._rate(monotonic()))


def track(items: Iterable[T], total: int, what: str, unit: str, done: int = 0) -> Iterator[T]:
    """The same items, showing how many of `total` were taken, `done` of them before."""
    with Progress(what, unit, total=total, done=done) as progress:
        yield from progress.count(items)


class Readable(Protocol):
    """A file, or an answer from the network."""

    def read(self, size: int = -1, /) -> bytes: ...


@contextmanager
def reading(file: Readable, size: int, what: str) -> Iterator[Readable]:
    """`file`, showing how much of its `size` in bytes was read."""
    with Progress(what, "MiB", total=size >> 20) as progress:
        yield _ShownFile(file, progress)


class _ShownFile:
    def __init__(self, file: Readable, progress: Progress) -> None:
        self._file, self._progress, self._bytes = file, progress, 0

    def read(self, size: int = -1, /) -> bytes:
        content = self._file.read(size)
        self._bytes += len(content)
        self._progress.show(self._bytes >> 20)
        return content
