"""The one entrance: records, policy and backend to batches on the training device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines import ops
from equimod.pipelines.backends import BACKENDS, Backend, BackendConfig, Request
from equimod.pipelines.batch import Batch, View
from equimod.pipelines.geometry import stored_box
from equimod.pipelines.params import AugmentationParams, ParamLayout, draw
from equimod.pipelines.policy import AugmentationPolicy, ViewPolicy
from equimod.pipelines.prefetch import prefetch
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.sampler import Sampler
from equimod.pipelines.timing import StageTimes
from equimod.pipelines.workers import own_cores

Operators = Callable[[Tensor, AugmentationParams, ViewPolicy], Tensor]
"""`ops.apply`, or one that does the same."""


class Pipeline:
    """Batches of every epoch, the same for the same seed whatever the backend, the workers or the number of ranks."""

    def __init__(self, config: BackendConfig, backend: Backend, sampler: Sampler, operators: Operators) -> None:
        self.stages = config.stages  # where its time goes, and that of a training on it
        self.workers = config.workers  # threads or processes of the backend
        self._records, self._policy, self._device = config.records, config.policy, config.device
        self._backend, self._sampler, self._operators = backend, sampler, operators
        self._layouts = tuple(ParamLayout.of(view) for view in self._policy.views)

    def __len__(self) -> int:
        """Steps an epoch on this rank."""
        return len(self._sampler)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from `start_step` on, augmented, on the device, computed one ahead."""
        return prefetch(self._augmented(epoch, start_step), self._device)

    def decoded(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The same samples before the operators: uint8 images where the backend makes them."""
        drawn: deque[tuple[NDArray[np.int64], tuple[AugmentationParams, ...]]] = deque()

        def requests() -> Iterator[Request]:
            positions = self._sampler.epoch(epoch)
            for step in range(start_step, len(self._sampler)):
                position = self._sampler.shard(positions, step)
                with self.stages.record("read_ahead"):
                    self._records.will_read(position)
                with self.stages.record("draw"):
                    params = self._draw(position, epoch)
                    drawn.append((position, params))
                    size, stored_size = self._records.size[position], self._records.stored_size[position]
                    request = Request(position, tuple(stored_box(p.crop, size, stored_size) for p in params))
                yield request

        for images in self.stages.record_each("load", self._backend.load(requests())):
            position, params = drawn.popleft()
            views = tuple(
                View(image, p, layout.encode(p))
                for image, p, layout in zip(images.views, params, self._layouts, strict=True)
            )
            label, index = (torch.from_numpy(a[position]) for a in (self._records.label, self._records.index))
            yield Batch(images.x, views, label, index)

    def _draw(self, position: NDArray[np.int64], epoch: int) -> tuple[AugmentationParams, ...]:
        size, index = self._records.size[position], self._records.index[position]
        return tuple(
            draw(policy, size, index, seed=self._sampler.seed, epoch=epoch, view=number)
            for number, policy in enumerate(self._policy.views)
        )

    def _augmented(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        for decoded in self.decoded(epoch, start_step):
            yield self._operated(decoded)

    def _operated(self, decoded: Batch) -> Batch:
        with self.stages.record("transfer", self._device):
            batch = self._moved(decoded)
        with self.stages.record("operators", self._device):
            views = tuple(
                replace(view, image=self._operators(view.image, view.params, policy))
                for view, policy in zip(batch.views, self._policy.views, strict=True)
            )
            x = None if batch.x is None else ops.apply_center(batch.x, self._policy.x)
        return replace(batch, x=x, views=views)

    def _moved(self, batch: Batch) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, non_blocking=True)

        views = tuple(replace(v, image=move(v.image), encoding=move(v.encoding)) for v in batch.views)
        return Batch(None if batch.x is None else move(batch.x), views, move(batch.label), batch.index)


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
    with_x: bool = True,
    workers: int | None = None,
    shuffle: bool = True,
    window: int | None = None,
    compiled: bool = False,
) -> Pipeline:
    """A pipeline over `records` whose views are drawn from `policy`.

    `batch_size` is global; `workers` are threads or processes of this rank, by default its share of the cores;
    `shuffle` and `window` as in `Sampler`; `compiled` has torch compile the operators, which takes a compiler and the
    first batches a minute. A sample's index is its position in the source, the same in every format.
    Raises ValueError for an unknown backend, a batch that does not split over the ranks or is larger than the data.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known; give one of {', '.join(BACKENDS)}")
    device = torch.device(device)
    sampler = Sampler(len(records), batch_size, seed, rank, world_size, shuffle, window)
    workers = workers or max(1, len(own_cores()))
    config = BackendConfig(records, policy, with_x, sampler.local_batch_size, workers, device, StageTimes())
    return Pipeline(config, BACKENDS[backend]()(config), sampler, _operators(compiled))


def _operators(compiled: bool) -> Operators:
    if not compiled:
        return ops.apply
    from equimod.pipelines.compiled import apply  # only now: torch.compile takes seconds to import

    return apply
