"""Interleaved measurement: contenders take turns on one machine, so that its noise meets all of them alike.

Each contender lives in a process of its own for the whole run: its peak memory is its own, and a thread pool or an
allocator that one of them warms up cannot help or hinder another. Only one works at a time, in an order that rotates
from round to round. On a GPU, whose memory processes share, a process is ended before the next one starts. Linux only:
the CPU time of worker processes and the peak memory are read from its kernel.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
    gpu_peak_bytes: int | None = None  # most memory that tensors had on the GPU in this turn

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


class HostClock:
    """The time since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def gpu_peak_bytes(self) -> int | None:
        """None: the host knows nothing of it."""
        return None


class GPUClock(HostClock):
    """The time that the current stream of the GPU takes, by its events. Not run on a GPU yet."""

    def __init__(self) -> None:
        from torch import cuda

        self._cuda = cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        self._start = self._event()

    def seconds(self) -> float:
        """Waits until the GPU is through with what it was asked for."""
        end = self._event()
        end.synchronize()
        return float(self._start.elapsed_time(end)) / 1e3

    def gpu_peak_bytes(self) -> int | None:
        return int(self._cuda.max_memory_allocated())

    def _event(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event


def interleave(
    contenders: dict[str, Callable[[Settings], Workload]],
    settings: Settings,
    rounds: int,
    *,
    alone: bool = False,
    clock: type[HostClock] = HostClock,
) -> Iterator[dict[str, Round]]:
    """Measure every contender `rounds` times, after one turn each to warm up; every round is yielded when it is done.

    The first one yielded is the warm-up, whose turns hold what comes once: starting, imports, compilation. With `alone`
    each turn has a process of its own and a warm-up in it, of which the first is yielded. `clock` measures later turns.

    Contenders are functions of a module, called with `settings` in their own process. Their exceptions are raised here.
    """
    names = list(contenders)
    with ExitStack() as stack:
        if not alone:
            processes = {name: stack.enter_context(_process()) for name in names}
            yield {name: processes[name].submit(_start, build, settings).result() for name, build in contenders.items()}
        for epoch in range(1, rounds + 1):
            started, turns = {}, {}
            shift = epoch % len(names)
            for name in names[shift:] + names[:shift]:
                with _process() if alone else nullcontext(processes[name]) as process:
                    if alone:
                        started[name] = process.submit(_start, contenders[name], settings).result()
                    turns[name] = process.submit(_measure, epoch, clock).result()
            if alone and epoch == 1:
                yield started
            yield turns


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


class _Here:
    """The contender of this process."""

    load: Workload


def _start(build: Callable[[Settings], Workload], settings: Settings) -> Round:
    def first_epoch() -> Iterator[int]:
        _Here.load = staticmethod(build(settings))
        yield from _Here.load(0)

    return _turn(first_epoch(), HostClock())


def _measure(epoch: int, clock: type[HostClock]) -> Round:
    return _turn(_Here.load(epoch), clock())


def _turn(batches: Iterable[int], clock: HostClock) -> Round:
    cpu_began = _cpu_seconds()
    images, first = 0, None
    for batch in batches:
        images += batch
        first = first or clock.seconds()
    seconds = clock.seconds()
    cpu_seconds = _cpu_seconds() - cpu_began
    return Round(images, seconds, cpu_seconds, _peak_bytes(), first or seconds, clock.gpu_peak_bytes())


def _processes() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid is not None)]


def _cpu_seconds() -> float:
    # The clock that clock_getcpuclockid(3) names for a process: all its threads, ended ones too, in nanoseconds.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in _processes())


def _peak_bytes() -> int:
    status = (Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in _processes())
    peaks = (re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE) for text in status)
    return sum(1024 * int(peak[1]) for peak in peaks if peak)
