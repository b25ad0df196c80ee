"""The one entrance: records, policy and backend to batches on the training device."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from equimod.pipelines.backends import BACKENDS, Backend, BackendConfig, Request
from equimod.pipelines.batch import Batch, Decoded, View
from equimod.pipelines.cores import loader_cores
from equimod.pipelines.geometry import stored_box
from equimod.pipelines.operators import Operators, operators_for
from equimod.pipelines.page_cache import PageCache
from equimod.pipelines.params import AugmentationParams, ParamLayout, draw
from equimod.pipelines.policy import AugmentationPolicy, CenterPolicy, ViewPolicy
from equimod.pipelines.prefetch import GPUMemory, Memory, Slot, prefetch
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.resolution import Resolution
from equimod.pipelines.sampler import Cursor, Sampler, Shard, Step
from equimod.pipelines.timing import StageTimes


class Pipeline:
    """Batches of every epoch, the same for the same seed whatever the backend, the workers or the number of ranks."""

    def __init__(
        self,
        config: BackendConfig,
        make_backend: Callable[[int], Backend],  # from the size of the images
        sampler: Sampler,
        operators: Operators,
        dtype: torch.dtype,
        resolution: Resolution,
    ) -> None:
        self.stages = config.stages  # where its time goes, and that of a training on it
        self.workers = config.workers  # threads or processes of the backend
        self.operators = operators
        self._records, self._policy, self._device = config.records, config.policy, config.device
        self._with_x, self._dtype = config.with_x, dtype
        self._sampler, self._resolution = sampler, resolution
        self._page_cache = PageCache(config.records, sampler.window)
        self._layouts = tuple(ParamLayout.of(view) for view in self._policy.views)
        self._make_backend = make_backend
        self._backends: dict[int, Backend] = {}  # by the size of the images, one at a time
        self._backend(resolution.at(0))
        self._idle: list[Memory] = []

    def __len__(self) -> int:
        """Steps an epoch on this rank."""
        return len(self._sampler)

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of `epoch` from `start_step` on, augmented, on the device, computed ahead."""
        return self.epochs(Cursor(epoch, start_step), epoch + 1)

    def epochs(self, start: Cursor, stop: int) -> Generator[Batch, None, None]:
        """The batches from `start` up to epoch `stop`, as `epoch` gives them, with no pause between epochs.

        On a GPU a batch holds until the next one is asked for.
        """
        memory = self._idle.pop() if self._idle else self._memory()
        try:
            yield from prefetch(self._decoded(start, stop), self._operated, memory)
        finally:
            self._idle.append(memory)

    def decoded(self, epoch: int, start_step: int = 0) -> Generator[Decoded, None, None]:
        """The same samples before the operators: uint8 images where the backend makes them."""
        return self._decoded(Cursor(epoch, start_step), epoch + 1)

    def _decoded(self, start: Cursor, stop: int) -> Generator[Decoded, None, None]:
        for size, epochs in groupby(range(start.epoch, stop), self._resolution.at):
            yield from self._decoded_by(self._backend(size), start, epochs)

    def _backend(self, size: int) -> Backend:
        """What makes images of a size. Another size's goes, with the memory that it may hold on a GPU."""
        if size not in self._backends:
            self._backends.clear()
            self._backends[size] = self._make_backend(size)
        return self._backends[size]

    def _decoded_by(self, backend: Backend, start: Cursor, epochs: Iterable[int]) -> Generator[Decoded, None, None]:
        drawn: deque[tuple[Step, tuple[AugmentationParams, ...]]] = deque()

        def requests() -> Iterator[Request]:
            for step in self._sampler.planned(self._shards(start, epochs)):
                position = step.shard.positions
                with self.stages.record("read_ahead"):
                    self._records.will_read(step.ahead)
                with self.stages.record("draw"):
                    params = self._draw(position, step.shard.epoch)
                    drawn.append((step, params))
                    size, stored_size = self._records.size[position], self._records.stored_size[position]
                    request = Request(position, tuple(stored_box(p.crop, size, stored_size) for p in params))
                yield request

        for images in self.stages.record_each("load", backend.load(requests())):
            step, params = drawn.popleft()
            with self.stages.record("read_ahead"):
                self._page_cache.used(step.done)
            views = tuple(
                View(image, p, layout.encode(p))
                for image, p, layout in zip(images.views, params, self._layouts, strict=True)
            )
            columns = self._records.label, self._records.index
            label, index = (torch.from_numpy(a[step.shard.positions].astype(np.int64)) for a in columns)
            yield Decoded(images.x, views, label, index)

    def _shards(self, start: Cursor, epochs: Iterable[int]) -> Iterator[Shard]:
        """What this rank takes in each step from `start` on."""
        for epoch in epochs:
            for step in range(start.step if epoch == start.epoch else 0, len(self._sampler)):
                yield self._sampler.shard(epoch, step)

    def _draw(self, position: NDArray[np.int64], epoch: int) -> tuple[AugmentationParams, ...]:
        size, index = self._records.size[position], self._records.index[position]
        return tuple(
            draw(policy, size, index, seed=self._sampler.seed, epoch=epoch, view=number)
            for number, policy in enumerate(self._policy.views)
        )

    def _memory(self) -> Memory:
        elements = (self._with_x + len(self._policy.views)) * self._sampler.local_batch_size * 3 * self._policy.size**2
        if self._device.type != "cuda":
            return Memory(elements, self._dtype)
        return GPUMemory(elements, self._dtype, self._device)

    def _operated(self, decoded: Decoded, slot: Slot) -> Batch:
        params, images = [view.params for view in decoded.views], decoded.images
        size = images[0].shape[-1]
        policy = self._policy.at(size)
        # Parameters say how far a blur reaches in the policy's own pixels; operators want it in those of the images.
        scaled = [replace(p, sigma=p.sigma * (size / self._policy.size)) for p in params]
        work: list[tuple[AugmentationParams | None, ViewPolicy | CenterPolicy]]
        work = [*([(None, policy.x)] if self._with_x else []), *zip(scaled, policy.views, strict=True)]
        with self.stages.record("transfer", self._device):
            tables = [self.operators.table(*of_image) for of_image in work]
            numbers = [decoded.label, *(view.encoding for view in decoded.views), *tables]
            label, *rest = slot.upload(numbers)
            encodings, tables = rest[: len(params)], rest[len(params) :]
            slot.keeps = tuple(image for image in images if image.device == self._device)
            images = tuple(image.to(self._device, non_blocking=True) for image in images)
        n = len(label)
        out = slot.images[: len(images) * n * 3 * size**2].view(-1, size, size, 3).permute(0, 3, 1, 2)
        with self.stages.record("operators", self._device):
            for image, (p, of_image), table, part in zip(images, work, tables, out.split(n), strict=True):
                self.operators(image, p, table, of_image, part)
        return Batch(out, tuple(params), tuple(encodings), label, decoded.index)


def build_pipeline(
    records: Records,
    policy: AugmentationPolicy,
    *,
    backend: str = "native",
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    with_x: bool = True,
    workers: int | None = None,
    shuffle: bool = True,
    window: int | None = None,
    resolution: Resolution | None = None,
) -> Pipeline:
    """A pipeline over `records` whose views are drawn from `policy`.

    `batch_size` is global; `dtype` that of the images, which the operators compute in float32; `workers` are threads or
    processes of this rank, by default as many as `loader_cores`; `shuffle` and `window` as in `Sampler`; `resolution`
    makes the images of early epochs smaller than the policy says, and changes nothing that is drawn. A sample's index
    is its position in the source, the same in every format.
    Raises ValueError for an unknown backend, a batch that does not split over the ranks or is larger than the data.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known; give one of {', '.join(BACKENDS)}")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    sampler = Sampler(len(records), batch_size, seed, rank, world_size, shuffle, window)
    cores = loader_cores(_gpus(device))
    workers = workers or max(1, len(cores))
    config = BackendConfig(records, policy, with_x, sampler.local_batch_size, workers, cores, device, StageTimes())
    resolution = resolution or Resolution((policy.size,))
    if resolution.sizes[-1] != policy.size:
        raise ValueError(f"resolution ends at {resolution.sizes[-1]} pixels, the policy's images have {policy.size}")
    factory = BACKENDS[backend]()

    def make_backend(size: int) -> Backend:
        return factory(replace(config, policy=policy.at(size)))

    return Pipeline(config, make_backend, sampler, operators_for(device), dtype, resolution)


def _gpus(device: torch.device) -> list[str]:
    """PCI addresses of the GPUs of the node's ranks, in their order; none where they train on CPUs."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type != "cuda":
        return []
    devices = [device.index] if ranks == 1 else range(ranks)
    found: list[Any] = [torch.cuda.get_device_properties(index) for index in devices]
    return [f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0" for gpu in found]
