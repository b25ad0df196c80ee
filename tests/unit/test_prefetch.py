"""Batches that are made ahead: in memory that goes round on a GPU, here with streams and events that take notes."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from equimod.pipelines.batch import Batch, Decoded
from equimod.pipelines.prefetch import GPUMemory, Memory, Slot, prefetch

CPU = torch.device("cpu")
SECONDS = 20.0  # until a test gives up


class Event:
    """Passed once the device is told to go on."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.passed = stream, threading.Event()

    def synchronize(self) -> None:
        assert self.passed.wait(SECONDS)


class Stream:
    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def record_event(self, _: object) -> Event:
        event = Event(self)
        self._cuda.recorded.append(event)
        if not self._cuda.busy:
            event.passed.set()
        return event

    def wait_event(self, event: Event) -> None:
        self._cuda.waits.append((self, event))


class Cuda:
    """What GPUMemory asks of torch.cuda. A `busy` device passes no event by itself."""

    def __init__(self, busy: bool = False) -> None:
        self.busy, self.recorded, self.waits, self.streams = busy, [], [], 0
        self._local, self.callers = threading.local(), Stream(self)

    def Stream(self, device: torch.device) -> Stream:
        self.streams += 1
        return Stream(self)

    def Event(self, *, blocking: bool) -> object:
        assert blocking  # one that spins would hold a core
        return SimpleNamespace()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._local.stream = self.current_stream(CPU), stream
        yield
        self._local.stream = before

    def current_stream(self, device: torch.device) -> Stream:
        found: Stream = getattr(self._local, "stream", self.callers)
        return found


def _decoded(batches: int) -> Generator[Decoded, None, None]:
    for number in range(batches):
        index = torch.tensor([number])
        yield Decoded(torch.full((1, 3, 2, 2), number, dtype=torch.uint8), (), index, index)


def _operate(decoded: Decoded, slot: Slot) -> Batch:
    assert decoded.x is not None
    out = slot.images.view(1, 3, 2, 2).copy_(decoded.x)
    (label,) = slot.upload([decoded.label])
    return Batch(out, (), (), label, decoded.index)


def _memory(cuda: Cuda) -> GPUMemory:
    return GPUMemory(12, torch.float32, CPU, cuda)


def test_batches_come_in_order_with_their_content_in_three_buffers_that_go_round() -> None:
    places, cuda = [], Cuda()
    for number, batch in enumerate(prefetch(_decoded(8), _operate, _memory(cuda))):
        assert (batch.images == number).all()
        places.append(batch.images.data_ptr())
    assert len(set(places)) == 3
    assert places == [places[k % 3] for k in range(8)]
    assert cuda.streams == 1


def test_what_the_caller_asks_for_comes_behind_the_making_of_the_batch() -> None:
    cuda = Cuda()
    for _ in prefetch(_decoded(3), _operate, _memory(cuda)):
        stream, event = cuda.waits[-1]
        assert stream is cuda.callers
        assert event.stream is not cuda.callers


def test_no_more_than_two_batches_are_ahead_of_the_device() -> None:
    """The fourth is made once the device is past what it was asked for with the first."""
    made: list[int] = []
    started = threading.Semaphore(0)

    def operate(decoded: Decoded, slot: Slot) -> Batch:
        made.append(int(decoded.index))
        started.release()
        return _operate(decoded, slot)

    cuda = Cuda(busy=True)
    with closing(prefetch(_decoded(9), operate, _memory(cuda))) as batches:
        for asked in range(4):
            if asked == 3:
                time.sleep(0.2)  # in which the thread would make the fourth if it did not wait for the device
                assert made == [0, 1, 2]
                used = [event for event in cuda.recorded if event.stream is cuda.callers]
                assert len(used) == 2
                used[0].passed.set()
            next(batches)
            assert started.acquire(timeout=SECONDS)
        for event in list(cuda.recorded):
            event.passed.set()
        cuda.busy = False


def test_an_end_before_the_end_leaves_memory_for_the_next_time() -> None:
    cuda = Cuda()
    memory = _memory(cuda)
    for stop in (1, 2, 5):
        with closing(prefetch(_decoded(9), _operate, memory)) as batches:
            assert [int(batch.index) for batch in islice(batches, stop)] == list(range(stop))
        assert len(memory._free) == 3
    assert [int(batch.index) for batch in prefetch(_decoded(4), _operate, memory)] == list(range(4))


def test_an_error_reaches_the_caller_and_leaves_memory_for_the_next_time() -> None:
    calls = count()

    def failing(decoded: Decoded, slot: Slot) -> Batch:
        if next(calls) == 2:
            raise ValueError("the third")
        return _operate(decoded, slot)

    memory = _memory(Cuda())
    with pytest.raises(ValueError, match="the third"):
        list(prefetch(_decoded(9), failing, memory))
    assert len(memory._free) == 3


def test_what_a_backend_made_on_the_device_is_kept_until_the_device_is_past_it() -> None:
    def keeping(decoded: Decoded, slot: Slot) -> Batch:
        assert slot.keeps == ()
        slot.keeps = decoded.images
        return _operate(decoded, slot)

    memory = _memory(Cuda())
    batches = prefetch(_decoded(9), keeping, memory)
    list(islice(batches, 3))
    batches.close()
    assert sum(map(len, (slot.keeps for slot in memory._free))) >= 2


def test_on_the_host_every_batch_has_memory_of_its_own() -> None:
    batches = list(prefetch(_decoded(6), _operate, Memory(12, torch.float32)))
    assert [float(batch.images.mean()) for batch in batches] == list(range(6))


class _Copies(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in args if isinstance(t, Tensor)]
        self.count += len({t.device.type for t in tensors}) == 2
        return func(*args, **(kwargs or {}))


def test_an_upload_is_one_copy_whatever_it_holds() -> None:
    parts = [torch.arange(5), torch.rand(3, 7), torch.rand(1, 20), torch.empty(0), torch.zeros(3, dtype=torch.bool)]
    slot = Slot(torch.empty(0, device="meta"))
    with _Copies() as copies:
        found = slot.upload(parts)
    assert copies.count == 1
    assert [(t.shape, t.dtype, t.device.type) for t in found] == [(t.shape, t.dtype, "meta") for t in parts]
    before = slot.numbers
    slot.upload(parts[:2])
    assert slot.numbers is before  # memory stays where it is large enough


def test_parts_of_an_upload_lie_apart_with_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same packing on a device that has values: the host, which otherwise uploads nothing."""
    parts = [torch.arange(5), torch.rand(3, 7), torch.empty(0), torch.ones(3, dtype=torch.bool)]
    slot = Slot(SimpleNamespace(device=SimpleNamespace(type="other")))
    empty = torch.empty

    def anywhere(*shape: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> Tensor:
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", anywhere)
    found = slot.upload(parts)
    assert all(torch.equal(a, b) for a, b in zip(found, parts, strict=True))


def test_an_interruption_of_the_wait_for_the_thread_is_what_the_caller_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that the generator, which the thread still runs, cannot be closed."""
    goes_on, closed = threading.Event(), threading.Event()

    def slow() -> Generator[Decoded, None, None]:
        try:
            yield from islice(_decoded(9), 1)
            goes_on.set()
            time.sleep(0.2)
            yield from _decoded(9)
        finally:
            closed.set()

    def interrupted(self: object) -> None:
        goes_on.wait(SECONDS)
        raise KeyboardInterrupt

    batches = prefetch(slow(), _operate, Memory(12, torch.float32))
    next(batches)
    monkeypatch.setattr(Future, "result", interrupted)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert closed.is_set()
