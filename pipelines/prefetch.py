"""Work on the next item while the caller uses this one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext

import torch

from equimod.pipelines.batch import Batch


def prefetch(batches: Generator[Batch, None, None], device: torch.device) -> Iterator[Batch]:
    """Yield `batches`, computing the next one in a thread of its own meanwhile.

    On CUDA that thread has its own stream, so the copies and operators of batch n+1 run beside the training step of
    batch n; the stream of the caller waits for them before it sees the batch. Not run on a GPU yet.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def load() -> tuple[Batch | None, torch.cuda.Event | None]:
        with torch.cuda.stream(stream) if stream else nullcontext():
            batch = next(batches, None)
            return batch, stream.record_event() if stream else None

    with closing(batches), ThreadPoolExecutor(1, thread_name_prefix="equimod-prefetch") as thread:
        pending = thread.submit(load)
        while True:
            batch, ready = pending.result()
            if batch is None:
                return
            pending = thread.submit(load)
            if ready is not None:
                _hand_over(batch, ready)
            yield batch


def _hand_over(batch: Batch, ready: torch.cuda.Event) -> None:
    """Order the caller's stream after `ready` and tell the allocator that it uses the batch's memory too."""
    current = torch.cuda.current_stream()
    current.wait_event(ready)
    tensors = [batch.label, *([batch.x] if batch.x is not None else [])]
    for view in batch.views:
        tensors += [view.image, view.encoding]
    for tensor in tensors:
        tensor.record_stream(current)
