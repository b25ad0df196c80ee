"""The backend that needs nothing but torch: threads in the process, one decode a sample for x and all views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.backends import Images, Request
from equimod.pipelines.decode import decode_sample
from equimod.pipelines.policy import AugmentationPolicy
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.resample import center, crop_resize

_BATCHES_AHEAD = 2
_TASKS_A_WORKER = 4  # of a batch: few enough to cost nothing, enough for workers to end a batch together


class NativeBackend:
    """Decodes and resamples in `workers` threads; libjpeg-turbo and torch's resampling release the GIL."""

    def __init__(
        self,
        records: Records,
        policy: AugmentationPolicy,
        *,
        with_x: bool,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self._records, self._policy, self._with_x = records, policy, with_x
        self._workers, self._pin_memory = workers, device.type == "cuda"

    def run(self, requests: Iterator[Request]) -> Iterator[Images]:
        """See `Backend.run`."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="equimod-decode") as pool:
            pending: deque[tuple[Images, list[Future[None]]]] = deque()
            try:
                for request in requests:
                    pending.append(self._start(request, pool))
                    if len(pending) > _BATCHES_AHEAD:
                        yield _finished(*pending.popleft())
                while pending:
                    yield _finished(*pending.popleft())
            finally:
                for _, tasks in pending:
                    for task in tasks:
                        task.cancel()

    def _start(self, request: Request, pool: ThreadPoolExecutor) -> tuple[Images, list[Future[None]]]:
        n, size = len(request.position), self._policy.size

        # Decoders write pixel after pixel, and so the batch lies in memory; its shape is (N,3,S,S) all the same.
        def empty() -> Tensor:
            return torch.empty((n, size, size, 3), dtype=torch.uint8, pin_memory=self._pin_memory).permute(0, 3, 1, 2)

        images = Images(empty() if self._with_x else None, tuple(empty() for _ in request.crops))
        rows = np.array_split(np.arange(n), min(n, _TASKS_A_WORKER * self._workers))
        return images, [pool.submit(self._fill, images, request, share) for share in rows]

    def _fill(self, images: Images, request: Request, rows: NDArray[np.int64]) -> None:
        for row in rows:
            position = int(request.position[row])
            pixels = decode_sample(self._records, position)
            if images.x is not None:
                images.x[row] = center(pixels, self._policy.x)
            for view, policy, crop in zip(images.views, self._policy.views, request.crops, strict=True):
                x, y, width, height = crop[row].tolist()
                view[row] = crop_resize(pixels, (x, y, width, height), policy.crop.size, policy.crop.interpolation)


def _finished(images: Images, tasks: list[Future[None]]) -> Images:
    wait(tasks)
    for task in tasks:
        task.result()
    return images
