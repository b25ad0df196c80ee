"""Make the next batches while the caller uses this one, in memory that goes round on a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from equimod.pipelines.batch import Batch, Decoded
from equimod.pipelines.ops import host_memory

_ALIGNED = 16  # bytes that the starts of tensors are multiples of


@dataclass
class Slot:
    """The memory of one batch."""

    images: Tensor  # one dimension
    numbers: Tensor | None = None  # uint8, what `upload` wrote
    keeps: tuple[Tensor, ...] = ()  # what the device still reads
    made: Any = None  # event on a GPU, behind the making of the batch
    used: Any = None  # event on a GPU, behind all that reads it

    def upload(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the host on the device of `images`, by one transfer into `numbers`."""
        device = self.images.device
        if device.type == "cpu":
            return list(parts)
        *starts, total = accumulate((-(-part.nbytes // _ALIGNED) * _ALIGNED for part in parts), initial=0)
        packed = torch.empty(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
        if self.numbers is None or len(self.numbers) < total:
            self.numbers = torch.empty(total, dtype=torch.uint8, device=device)
        for part, place in zip(parts, _placed(packed, parts, starts), strict=True):
            place.copy_(part)
        self.numbers[:total].copy_(packed, non_blocking=True)
        return _placed(self.numbers, parts, starts)


def _placed(memory: Tensor, parts: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    """Tensors like `parts` that lie in `memory`, from the byte `starts` on."""
    return [
        memory[start : start + part.nbytes].view(part.dtype).view(part.shape)
        for part, start in zip(parts, starts, strict=True)
    ]


class Memory:
    """Memory on the host, new for each batch, so that the caller may keep it."""

    ahead = 1
    """Batches that are made while the caller has another one."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self._elements, self._dtype = elements, dtype

    def making(self) -> AbstractContextManager[object]:
        """The surroundings in which batches are made."""
        return nullcontext()

    def take(self) -> Slot:
        """Memory for a batch."""
        return Slot(host_memory(self._elements, self._dtype))

    def made(self, slot: Slot) -> None:
        """All work on the batch in `slot` is handed to the device."""

    def hand_over(self, slot: Slot) -> None:
        """What the caller asks of the device from now on may read `slot`."""

    def give_back(self, slot: Slot) -> None:
        """What the caller asks of the device from now on does not read `slot`."""


class GPUMemory(Memory):
    """Three buffers that go round, filled on a stream of their own, at most two batches ahead of the device.

    A batch is made in the memory of the third one before it, after the device is past all that the caller had asked of
    it with that one. So memory stays the same, and the allocator need not know of two streams.
    """

    ahead = 2

    def __init__(self, elements: int, dtype: torch.dtype, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda, self._stream = device, cuda, cuda.Stream(device)
        buffers = (torch.empty(elements, dtype=dtype, device=device) for _ in range(self.ahead + 1))
        self._free = deque(map(Slot, buffers))

    def making(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._cuda.stream(self._stream)
        return context

    def take(self) -> Slot:
        """Memory for a batch. The host waits until the device is through with what was there."""
        slot = self._free.popleft()
        if slot.used is not None:
            slot.used.synchronize()
        slot.keeps = ()
        return slot

    def made(self, slot: Slot) -> None:
        slot.made = self._event(self._stream)

    def hand_over(self, slot: Slot) -> None:
        self._cuda.current_stream(self._device).wait_event(slot.made)

    def give_back(self, slot: Slot) -> None:
        slot.used = self._event(self._cuda.current_stream(self._device))
        self._free.append(slot)

    def _event(self, stream: Any) -> Any:
        return stream.record_event(self._cuda.Event(blocking=True))  # which lets other threads run while one waits


Made = tuple[Batch, Slot] | None
"""A batch in its memory; None behind the last one."""


def prefetch(
    decoded: Generator[Decoded, None, None], operate: Callable[[Decoded, Slot], Batch], memory: Memory
) -> Generator[Batch, None, None]:
    """Yield `operate` of each of `decoded` in a slot of `memory`, making the next ones in a thread meanwhile."""

    def make() -> Made:
        with memory.making():
            item = next(decoded, None)
            if item is None:
                return None
            slot = memory.take()
            try:
                batch = operate(item, slot)
            except BaseException:
                memory.give_back(slot)
                raise
            memory.made(slot)
            return batch, slot

    pending: deque[Future[Made]] = deque()
    with _thread(decoded, memory.ahead + 1) as submit:
        pending.extend(submit(make) for _ in range(memory.ahead))
        held: Slot | None = None
        try:
            while (done := pending.popleft().result()) is not None:
                pending.append(submit(make))
                batch, held = done
                memory.hand_over(held)
                yield batch
                memory.give_back(held)
                held = None
        finally:
            if held is not None:
                memory.give_back(held)
            for future in pending:
                if not future.cancel() and future.exception() is None and (done := future.result()) is not None:
                    memory.hand_over(done[1])
                    memory.give_back(done[1])


@contextmanager
def _thread(used: Generator[Decoded, None, None], most: int) -> Iterator[Callable[[Callable[[], Made]], Future[Made]]]:
    """What submits work to a thread, which alone goes on with `used`; behind the block that is closed.

    `most`: work that is not done at any time. Waiting for a thread, once it is interrupted, is over for good: its work
    is waited for then, since a generator that runs cannot be closed.
    """
    thread, submitted = ThreadPoolExecutor(1, thread_name_prefix="equimod-prefetch"), deque[Future[Made]](maxlen=most)

    def submit(work: Callable[[], Made]) -> Future[Made]:
        submitted.append(thread.submit(work))
        return submitted[-1]

    try:
        yield submit
    finally:
        try:
            thread.shutdown()
        finally:
            wait(submitted)
            used.close()
