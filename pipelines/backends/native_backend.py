"""The backend that needs nothing but torch: threads in the process, one decode a sample for x and all views."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.backends import BackendConfig, Images, Request
from equimod.pipelines.cores import stay_on
from equimod.pipelines.decode import RegionDecoder, decode_image, read_image
from equimod.pipelines.resize import CropResizer, center_crop_specs, crop_specs, regions_of_interest
from equimod.pipelines.timing import Timer

_BATCHES_AHEAD = 2
_TASKS_A_WORKER = 4  # of a batch: few enough to cost nothing, enough for workers to end a batch together


class NativeBackend:
    """Decodes and resamples in `workers` threads; libjpeg-turbo and the resampling release the GIL."""

    def __init__(self, config: BackendConfig) -> None:
        self._config, self._pin_memory = config, config.device.type == "cuda"

    def load(self, requests: Iterator[Request]) -> Iterator[Images]:
        """See `Backend.load`."""
        own = threading.local()  # a decoder a thread; its memory goes when the thread ends
        with ThreadPoolExecutor(self._config.workers, "equimod-decode", self._begin, (own,)) as pool:
            pending: deque[tuple[Images, list[Future[None]]]] = deque()
            try:
                for request in requests:
                    pending.append(self._start(request, pool, own))
                    if len(pending) > _BATCHES_AHEAD:
                        yield _finished(*pending.popleft())
                while pending:
                    yield _finished(*pending.popleft())
            finally:
                for _, tasks in pending:
                    for task in tasks:
                        task.cancel()

    def _begin(self, own: threading.local) -> None:
        own.decode = RegionDecoder()
        stay_on(self._config.cores)

    def _start(
        self, request: Request, pool: ThreadPoolExecutor, own: threading.local
    ) -> tuple[Images, list[Future[None]]]:
        n, side = len(request.position), self._config.policy.size

        # Decoders write pixel after pixel, and so the batch lies in memory; its shape is (N,3,S,S) all the same.
        def empty() -> Tensor:
            return torch.empty((n, side, side, 3), dtype=torch.uint8, pin_memory=self._pin_memory).permute(0, 3, 1, 2)

        images = Images(empty() if self._config.with_x else None, tuple(empty() for _ in request.boxes))
        of_output = [
            crop_specs(boxes.numpy(), policy.crop.size, policy.crop.interpolation)
            for policy, boxes in zip(self._config.policy.views, request.boxes, strict=True)
        ]
        size, stored_size = (a[request.position] for a in (self._config.records.size, self._config.records.stored_size))
        if self._config.with_x:
            of_output.insert(0, center_crop_specs(size, stored_size, self._config.policy.x))
        targets = [t.permute(0, 2, 3, 1).numpy() for t in (images.x, *images.views) if t is not None]
        rows = np.array_split(np.arange(n), min(n, _TASKS_A_WORKER * self._config.workers))
        specs = np.stack(of_output, axis=1)
        regions = regions_of_interest(specs, stored_size)
        fill = partial(self._fill, own, request.position, regions, CropResizer(specs, targets))
        return images, [pool.submit(fill, some.tolist()) for some in rows]

    def _fill(
        self,
        own: threading.local,
        position: NDArray[np.int64],
        regions: NDArray[np.int64],
        resize: CropResizer,
        rows: list[int],
    ) -> None:
        """Fill these rows of a batch: read samples of `position` (N,), decode `regions` (N,4) of them, and `resize`."""
        timer, records, positions = Timer(), self._config.records, position[rows]
        sizes = records.stored_size[positions].tolist()
        for row, at, size, region in zip(rows, positions.tolist(), sizes, regions[rows].tolist(), strict=True):
            content = read_image(records, at)
            timer.lap("read")
            pixels = own.decode(content, size, region)
            if pixels is None:
                pixels = decode_image(records, at, content)
            timer.lap("decode")
            resize(row, pixels)
            timer.lap("resize")
        self._config.stages.add(timer)


def _finished(images: Images, tasks: list[Future[None]]) -> Images:
    wait(tasks)
    for task in tasks:
        task.result()
    return images
