"""pipelines/timing.py: every second counts once, under the stage and from the thread that took it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from equimod.pipelines import timing
from equimod.pipelines.backends import BACKENDS, Images, Request
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.records.folder import FolderRecords
from equimod.pipelines.timing import LOADER, PREFETCH, StageTimes, Timer

POLICY = POLICIES["simclr_shapes"]
GPU = torch.device("cuda")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until `clock.now` is set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now)
    return clock


def test_a_lap_counts_from_the_end_of_the_last_one(clock: SimpleNamespace) -> None:
    clock.now = 5.0
    timer = Timer()
    for now, stage in ((6.0, "read"), (9.0, "decode"), (9.5, "read")):
        clock.now = now
        timer.lap(stage)
    assert timer.seconds == {"read": 1.5, "decode": 3.0}


def test_no_second_of_any_thread_is_lost() -> None:
    stages, threads, times = StageTimes(), 8, 500
    timer = Timer()
    timer.seconds |= {"read": 1.0, "decode": 2.0}
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: [stages.add(timer) for _ in range(times)], range(threads)))
    finally:
        sys.setswitchinterval(switch)
    assert stages.seconds() == {"read": threads * times, "decode": 2 * threads * times}


def test_a_stage_inside_another_counts_once(clock: SimpleNamespace) -> None:
    stages = StageTimes()
    with stages.record("load"):
        clock.now += 1
        for _ in range(2):
            with stages.record("draw"):
                clock.now += 10
        clock.now += 100
    with stages.record("load"):
        clock.now += 1000
    assert stages.seconds() == {"draw": 20, "load": 1101}


def test_a_stage_in_another_thread_takes_nothing_from_this_one(clock: SimpleNamespace) -> None:
    stages = StageTimes()

    def draw() -> None:
        with stages.record("draw"):
            clock.now += 10

    with stages.record("load"), ThreadPoolExecutor(1) as pool:
        pool.submit(draw).result()
    assert stages.seconds() == {"draw": 10, "load": 10}


def test_a_stage_that_raises_counts_too(clock: SimpleNamespace) -> None:
    stages = StageTimes()

    def fail() -> None:
        with stages.record("load"):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert stages.seconds() == {"load": 1}


def test_the_time_until_each_item_counts_and_that_of_its_use_does_not(clock: SimpleNamespace) -> None:
    def items() -> Iterator[int]:
        for item in range(3):
            clock.now += 1
            yield item
        clock.now += 0.5

    stages, got = StageTimes(), []
    for item in stages.record_each("wait", items()):
        clock.now += 100
        got.append(item)
    assert got == [0, 1, 2]
    assert stages.seconds() == {"wait": 3.5}


class _Event:
    """A CUDA event on a device whose clock is `device.now`, which passes it when `device.reached` says so."""

    device = SimpleNamespace(now=0.0, reached=0.0)

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "current stream"
        self.at = self.device.now

    def query(self) -> bool:
        return self.at <= self.device.reached

    def elapsed_time(self, end: _Event) -> float:
        assert end.query()
        return 1000 * (end.at - self.at)


def test_on_a_gpu_the_devices_time_counts_once_it_has_passed_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current stream")
    stages = StageTimes()
    for stage, seconds in (("forward", 1.0), ("backward", 2.0), ("forward", 4.0)):
        with stages.record(stage, GPU):
            _Event.device.now += seconds
    assert stages.seconds() == {}
    _Event.device.reached = 3.5
    assert stages.seconds() == {"forward": 1.0, "backward": 2.0}
    _Event.device.reached = 7.0
    assert stages.seconds() == stages.seconds() == {"forward": 5.0, "backward": 2.0}
    assert stages.on_gpu == {"forward", "backward"}


def test_events_that_a_gpu_has_passed_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current stream")
    stages = StageTimes()
    for _ in range(100):
        with stages.record("forward", GPU):
            _Event.device.now += 1.0
        _Event.device.reached = _Event.device.now - 2.0  # two stages behind the host
        assert len(stages._events) <= 3
    _Event.device.reached = _Event.device.now
    assert stages.seconds() == {"forward": 100.0}


def _pipeline(tree: Path, **arguments: Any) -> Pipeline:
    return build_pipeline(open_records(tree), POLICY, batch_size=8, seed=0, **arguments)


def test_an_epoch_fills_every_stage_of_the_loader_and_of_the_prefetch_thread(image_tree: Path) -> None:
    pipeline = _pipeline(image_tree, workers=2)
    assert pipeline.stages.seconds() == {}
    assert len(list(pipeline.epoch(0))) == 3
    seconds = pipeline.stages.seconds()
    assert seconds.keys() == {*LOADER, *PREFETCH}
    assert all(value > 0 for value in seconds.values())


def test_the_time_that_a_file_takes_to_arrive_is_read(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FolderRecords.read

    def read(self: FolderRecords, position: int) -> Any:
        time.sleep(0.02)
        return original(self, position)

    monkeypatch.setattr(FolderRecords, "read", read)
    pipeline = _pipeline(image_tree, workers=2)
    list(pipeline.epoch(0))
    seconds = pipeline.stages.seconds()
    assert seconds["read"] > 24 * 0.02
    assert seconds["read"] > seconds["decode"]


class _Engine:
    """A backend that does everything by itself, in a while."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def load(self, requests: Iterator[Request]) -> Iterator[Images]:
        for request in requests:
            time.sleep(0.1)
            n = len(request.position)
            yield Images(None, tuple(torch.zeros(n, 3, 64, 64, dtype=torch.uint8) for _ in request.boxes))


def test_all_of_a_backend_that_tells_no_stages_apart_is_load(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "native", lambda: _Engine)
    pipeline = _pipeline(image_tree)
    list(pipeline.decoded(0))
    seconds = pipeline.stages.seconds()
    assert seconds.keys() == {"read_ahead", "draw", "load"}
    assert seconds["load"] > 3 * 0.1
    assert seconds["draw"] + seconds["read_ahead"] < 0.1
