"""Interleaved measurement: contenders take turns on one machine, so that its noise meets all of them alike.

Each contender lives in a process of its own for the whole run: its peak memory is its own, and a thread pool or an
allocator that one of them warms up cannot help or hinder another. Only one works at a time, in an order that rotates
from round to round. Linux only: the CPU time of worker processes and the peak memory are read from its kernel.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Workload = Callable[[int], Iterable[int]]
"""Work through one epoch, given its number; yields the number of images of each batch, when that batch is ready."""

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Round:
    """One contender's turn."""

    images: int
    seconds: float
    cpu_seconds: float  # user and system time of the process, its threads and its worker processes
    peak_bytes: int  # largest resident memory so far, summed over the process and its workers, shared pages in each
    first_batch_seconds: float  # from the start of the turn until the first batch was ready

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds an image."""
        return 1e3 * self.cpu_seconds / self.images


@dataclass(frozen=True)
class Spread:
    """A quantity over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises StatisticsError where there are no values."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


def ratio(rounds: Sequence[dict[str, Round]], numerator: str, denominator: str) -> Spread:
    """How many times as many images/s one contender makes as another, within each round."""
    return Spread.of(turns[numerator].images_per_second / turns[denominator].images_per_second for turns in rounds)


def interleave(
    contenders: dict[str, Callable[[Settings], Workload]], settings: Settings, rounds: int
) -> Iterator[dict[str, Round]]:
    """Measure every contender `rounds` times, after one turn each to warm up; every round is yielded when it is done.

    The first one yielded is the warm-up, whose turns hold what comes once: starting, imports, compilation.

    Contenders are functions of a module, called with `settings` in their own process. Their exceptions are raised here.
    """
    names = list(contenders)
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for name in names}
        yield {name: processes[name].submit(_start, build, settings).result() for name, build in contenders.items()}
        for epoch in range(1, rounds + 1):
            shift = epoch % len(names)
            yield {name: processes[name].submit(_measure, epoch).result() for name in names[shift:] + names[:shift]}


class _Here:
    """The contender of this process."""

    load: Workload


def _start(build: Callable[[Settings], Workload], settings: Settings) -> Round:
    def first_epoch() -> Iterator[int]:
        _Here.load = staticmethod(build(settings))
        yield from _Here.load(0)

    return _turn(first_epoch())


def _measure(epoch: int) -> Round:
    return _turn(_Here.load(epoch))


def _turn(batches: Iterable[int]) -> Round:
    began, cpu_began = time.perf_counter(), _cpu_seconds()
    images, first = 0, None
    for batch in batches:
        images += batch
        first = first or time.perf_counter() - began
    seconds = time.perf_counter() - began
    return Round(images, seconds, _cpu_seconds() - cpu_began, _peak_bytes(), first or seconds)


def _processes() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid is not None)]


def _cpu_seconds() -> float:
    # The clock that clock_getcpuclockid(3) names for a process: all its threads, ended ones too, in nanoseconds.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in _processes())


def _peak_bytes() -> int:
    status = (Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in _processes())
    peaks = (re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE) for text in status)
    return sum(1024 * int(peak[1]) for peak in peaks if peak)
