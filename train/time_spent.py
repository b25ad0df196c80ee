"""Where the time of a run went, by stage and thread, and what its limit was."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from equimod.pipelines.timing import LOADER, PREFETCH, TRAINING, StageTimes

WAITS = 0.05  # share of the time from which on training waits for data rather than the other way round
READS = 0.5  # share of the loader threads' work from which on the disk is the limit rather than the CPU
REST = "other"
COLUMNS = ("stage", "runs in", "seconds", "share", "ms an image")
"""Of the table; the last three hold numbers."""


@dataclass(frozen=True)
class StageTime:
    """One stage on this rank."""

    seconds: float  # summed over its threads
    thread: str  # loader, prefetch or training
    threads: int
    on_gpu: bool  # whose seconds these are then: the thread only hands over the work
    share: float  # of the time that these threads had
    ms_an_image: float  # summed over the threads


@dataclass(frozen=True)
class TimeSpent:
    """The time of one process of a run, on this rank: a resumed run counts from its resume."""

    wall_seconds: float
    images: int  # of this rank
    stages: dict[str, StageTime]
    data_wait: float  # share of the time, see `data_wait`
    limit: str  # a sentence

    def event(self, step: int) -> dict[str, Any]:
        """The event of metrics.jsonl."""
        return {"event": "time", "step": step, **_rounded(asdict(self))}

    def title(self) -> str:
        """The line above the table."""
        return (
            f"Where {self.wall_seconds:.1f} s and {self.images:,} images went; share: of the time of a stage's threads"
        )

    def table(self) -> Table:
        """A row a stage, for the screen."""
        table = Table(*COLUMNS[:2], box=None, pad_edge=False)
        for name in COLUMNS[2:]:
            table.add_column(name, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def rows(self) -> list[list[str]]:
        """The cells under COLUMNS, a row a stage."""
        rows = []
        for name, stage in self.stages.items():
            runs_in = f"{stage.threads} {stage.thread} thread" + "s" * (stage.threads > 1)
            numbers = f"{stage.seconds:.2f}", f"{stage.share:.1%}", f"{stage.ms_an_image:.3f}"
            rows.append([name, runs_in + ", GPU" * stage.on_gpu, *numbers])
        return rows


class Clock:
    """Reads the seconds a stage of this process; a rank trains on `batch_size` images a step."""

    def __init__(self, stages: StageTimes, loader_threads: int, batch_size: int) -> None:
        self._stages, self._loader_threads, self._batch_size = stages, loader_threads, batch_size
        self._read: dict[str, float] = {}

    def lap(self, wall: float) -> dict[str, Any]:
        """What a step's event says of the `wall` seconds since the last lap: data_wait, and the seconds a stage.

        `thread_seconds` are summed over the loader's threads; `seconds` are of stages with one thread.
        """
        now = self._stages.seconds()
        since = {name: total - self._read.get(name, 0.0) for name, total in now.items()}
        self._read = now
        lap: dict[str, Any] = _rounded(
            {
                "data_wait": data_wait(since, wall, self._stages.on_gpu),
                "seconds": {name: since[name] for name in (*PREFETCH, *TRAINING) if name in since},
                "thread_seconds": {name: since[name] for name in LOADER if name in since},
            },
            digits=4,
        )
        return lap

    def spent(self, wall: float, steps: int) -> TimeSpent:
        """The `wall` seconds since the start, in which `steps` steps were taken."""
        seconds, images, threads = self._stages.seconds(), steps * self._batch_size, self._loader_threads
        return time_spent(seconds, wall, images, loader_threads=threads, on_gpu=self._stages.on_gpu)


def time_spent(
    seconds: Mapping[str, float], wall: float, images: int, *, loader_threads: int, on_gpu: Set[str] = frozenset()
) -> TimeSpent:
    """Sum up `wall` seconds of training on `images` images; `seconds` a stage as `StageTimes.seconds` gives them.

    Where no stage of the training thread is on a GPU, what that thread did outside of all of them is one more, `other`:
    it waits for other ranks there.
    """
    threads = dict.fromkeys(LOADER, ("loader", loader_threads)) | dict.fromkeys(PREFETCH, ("prefetch", 1))
    found = {name: seconds[name] for name in (*LOADER, *PREFETCH, *TRAINING) if name in seconds}
    if not on_gpu & set(TRAINING):
        found[REST] = max(0.0, wall - sum(found.get(name, 0.0) for name in TRAINING))
    stages = {}
    for name, total in found.items():
        thread, number = threads.get(name, ("training", 1))
        stages[name] = StageTime(total, thread, number, name in on_gpu, total / wall / number, 1000 * total / images)
    return TimeSpent(wall, images, stages, data_wait(seconds, wall, on_gpu), limit(seconds, wall, on_gpu))


def data_wait(seconds: Mapping[str, float], wall: float, on_gpu: Set[str] = frozenset()) -> float:
    """The share of `wall` seconds that training waited for data.

    A host that hands its steps to a GPU runs ahead and waits for data while the GPU works. That costs nothing, so no
    more counts than the time in which the GPU had no step to do.
    """
    steps = [seconds.get(name, 0.0) for name in TRAINING if name in on_gpu]
    idle = max(0.0, wall - sum(steps)) if steps else wall
    return min(seconds.get("wait", 0.0), idle) / wall


def limit(seconds: Mapping[str, float], wall: float, on_gpu: Set[str] = frozenset()) -> str:
    """One sentence: what limits the speed of training, and what helps.

    The step does where training waits for data less than `WAITS` of the time. Otherwise the prefetch thread does where
    its own work takes longer than the loader (`load` and `read_ahead`). Otherwise the loader does: its disk where its
    threads spend more than `READS` of their work in `read`, or where `read_ahead` takes longer than `load`; else its
    CPU. Reading is a copy and a checksum; what is not in memory yet comes from the disk within it.
    """
    waited = data_wait(seconds, wall, on_gpu)
    begin = f"training waits for data {waited:.0%} of the time: "
    if waited < WAITS:
        parts = (f"{name} {seconds.get(name, 0.0) / wall:.0%}" for name in ("forward", "backward", "optimizer"))
        return f"{begin}the step is the limit ({', '.join(parts)})"
    load, ahead = (seconds.get(name, 0.0) for name in ("load", "read_ahead"))
    own = sum(seconds.get(name, 0.0) for name in ("draw", "transfer", "operators") if name not in on_gpu)
    if own > load + ahead:
        return f"{begin}the prefetch thread is the limit, its operators take longer than loading; give more cores"
    work = sum(seconds.get(name, 0.0) for name in LOADER)
    reads = seconds.get("read", 0.0) / work if work else 0.0
    if reads > READS or ahead > load:
        return (
            f"{begin}the disk is the limit: reading is {reads:.0%} of the loader threads' work, and asking for the "
            f"next batches takes {ahead / wall:.0%} of the time; put the records on a faster disk, or make them small "
            "enough to stay in memory (--max-side)"
        )
    if not work:
        return (
            f"{begin}the loader is the limit, and this backend does not tell its reading from its decoding; give more "
            "cores, smaller records (--max-side) or a faster disk"
        )
    return f"{begin}the loader's threads are the limit; give more cores or smaller records (--max-side)"


def _rounded(value: Any, digits: int = 6) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(v, digits) for name, v in value.items()}
    return round(value, digits) if isinstance(value, float) else value
