"""What the command lines of this folder share: exit codes, errors in one line, a progress display."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from equimod.pipelines.durable import remedy

PLAIN_SECONDS = 5.0  # between the lines of a display without a terminal


class _Terminated(BaseException):
    pass


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def run_command(command: Callable[[], None], *expected: type[Exception], again: str) -> int:
    """Exit code of `command`: 0, 1 after one of the `expected` errors, 130 after Ctrl-C, 143 after SIGTERM.

    The last three print one line, no traceback; `again` says there what running the same command again will do.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
    except expected as error:
        # Without a number it is our own, such as a folder that is there already, and says what to do.
        hint = f"; {remedy(error)} and run the same command again" if isinstance(error, OSError) and error.errno else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, _Terminated) as stop:
        print(f"interrupted; run the same command to {again}", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    return 0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} images/s")


@contextmanager
def image_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to be told the images done and those in all, which shows both, images/s and the time left.

    A bar on a terminal, otherwise a plain line every few seconds.
    """
    if not sys.stderr.isatty():
        yield _plain_lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_lines(what: str) -> Callable[[int, int], None]:
    start = last = time.monotonic()
    first: int | None = None

    def show(done: int, total: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = done if first is None else first  # what an earlier run did says nothing about speed
        if now - last < PLAIN_SECONDS or done == first:
            return
        last = now
        rate = (done - first) / (now - start)
        left = (total - done) / rate
        print(f"{what}: {done:,} of {total:,} images, {rate:,.0f} images/s, {left:,.0f} s left", file=sys.stderr)

    return show
