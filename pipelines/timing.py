"""Where the time of a run goes: seconds a stage, summed over the threads that it runs in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local
from time import perf_counter
from typing import TypeVar

import torch

Item = TypeVar("Item")

LOADER = ("read", "decode", "resize")
"""Of the native backend's threads: an image as it is stored, its pixels, x and the views of it."""
PREFETCH = ("read_ahead", "draw", "load", "transfer", "operators")
"""Of the prefetch thread. `read_ahead` asks the disk for the bytes of a batch, and waits where it has too much to do.
`load` is the time inside the backend, less the two before: the wait for the native backend's threads, and everything
that DALI and FFCV do, since their engines tell no stages apart."""
TRAINING = ("wait", "forward", "backward", "optimizer", "logging", "checkpoint")
"""Of the training thread; it waits for data."""


class Timer:
    """Seconds a stage in one thread, each counted from the end of the one before.

    For many short stages in a loop: `StageTimes.add` then takes its lock once for all of them.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap, or since this was made, under `stage`."""
        now = perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


class StageTimes:
    """Sums of seconds a stage. Every method may be called from several threads at once.

    On a GPU it is the device that is timed, by two CUDA events around a stage on the current stream. They are read and
    dropped once the device has passed them, and never waited for.
    """

    def __init__(self) -> None:
        self.on_gpu: set[str] = set()  # stages that are timed there
        self._lock = Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._inside = local()  # seconds of stages within the one that a thread is in

    def add(self, timer: Timer) -> None:
        """Add the seconds that a thread has counted in its own Timer."""
        with self._lock:
            for stage, seconds in timer.seconds.items():
                self._seconds[stage] += seconds

    @contextmanager
    def record(self, stage: str, device: torch.device | None = None) -> Iterator[None]:
        """Count the time of a block, less that of such blocks inside it; that of `device` where it is a GPU."""
        if device is not None and device.type == "cuda":
            with self._record_gpu(stage, device):
                yield
            return
        outside, self._inside.seconds = getattr(self._inside, "seconds", 0.0), 0.0
        began = perf_counter()
        try:
            yield
        finally:
            elapsed = perf_counter() - began
            with self._lock:
                self._seconds[stage] += elapsed - self._inside.seconds
            self._inside.seconds = outside + elapsed

    @contextmanager
    def _record_gpu(self, stage: str, device: torch.device) -> Iterator[None]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(device)
        begin.record(stream)
        yield
        end.record(stream)
        with self._lock:
            self.on_gpu.add(stage)
            self._events.append((stage, begin, end))
            self._count_passed()

    def _count_passed(self) -> None:
        """Add the time of the events that the device has passed. To be called with the lock."""
        pending, self._events = self._events, []
        for stage, begin, end in pending:
            if end.query():
                self._seconds[stage] += begin.elapsed_time(end) / 1000
            else:
                self._events.append((stage, begin, end))

    def record_each(self, stage: str, items: Iterator[Item]) -> Iterator[Item]:
        """The same items, with the time until each of them counted under `stage`."""
        while True:
            with self.record(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Seconds so far, a stage. What a GPU has not finished counts in a later call."""
        with self._lock:
            self._count_passed()
            return dict(self._seconds)
