"""What `throughput.py step` and `throughput.py train` time: the trainer's own step, its pipeline, and both together.

All three are put together from one command line of train/main.py, each in a process of its own, as one rank.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, repeat

import torch
from torch import Tensor

from equimod.benchmarks.measure import Workload
from equimod.pipelines.batch import Batch
from equimod.pipelines.build import Pipeline
from equimod.pipelines.sampler import Cursor
from equimod.train.config import parse
from equimod.train.data import prepare
from equimod.train.distributed import process_group
from equimod.train.loop import TrainState, train_step
from equimod.train.run import build_train_state, training_pipeline, with_backend, with_normalization


@dataclass(frozen=True)
class TrainSettings:
    """What is trained, and how far in a round."""

    arguments: tuple[str, ...]  # of train/main.py
    batches: int  # a round


class _Training:
    """Everything of a run but its loop."""

    pipeline: Pipeline
    state: TrainState

    def __init__(self, settings: TrainSettings) -> None:
        stack = ExitStack()
        atexit.register(stack.close)
        config = parse(settings.arguments)
        dist_info = stack.enter_context(process_group(config.system.device))
        config, records = prepare(config.on_device(dist_info.device.type), dist_info)
        config, _ = with_backend(config, records, None, dist_info)
        config = with_normalization(config, records, None)
        self.pipeline = training_pipeline(config, records, dist_info)
        self.state = build_train_state(config, records, len(self.pipeline), dist_info)
        self._batches = settings.batches

    def batches(self, epoch: int) -> Iterator[Batch]:
        """As many batches as a round has, over several epochs where one is shorter."""
        first = epoch * self._batches
        return islice(self.pipeline.epochs(Cursor(first, 0), first + self._batches), self._batches)

    def steps(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Train on `batches`, without waiting for a GPU."""
        learning_rate = self.state.learning_rate(len(self.pipeline) - 1)
        for batch in batches:
            self.state.model.before_step(0.0)
            train_step(self.state, batch, learning_rate)
            yield len(batch)


def step(settings: TrainSettings) -> Workload:
    """The step alone, again and again on one batch that is on the device."""
    training = _Training(settings)
    batch = next(training.batches(0))
    return lambda epoch: training.steps(repeat(batch, settings.batches))


def pipeline(settings: TrainSettings) -> Workload:
    """The pipeline alone: decode, crop, resize, operators, parameters, on the device."""
    training = _Training(settings)
    return lambda epoch: (len(batch) for batch in training.batches(epoch))


def train(settings: TrainSettings) -> Workload:
    """The step on what the pipeline makes."""
    training = _Training(settings)
    return lambda epoch: training.steps(training.batches(epoch))


def encoder_gradient(settings: TrainSettings) -> Tensor:
    """The gradient of the encoder's weights on the first batch, as one vector."""
    training = _Training(settings)
    training.state.model.before_step(0.0)
    training.state.grad_cache(next(training.batches(0)))
    weights = training.state.model.encoder.parameters()
    return torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])


TRAINERS: dict[str, Callable[[TrainSettings], Workload]] = {"step": step, "pipeline": pipeline, "train": train}
