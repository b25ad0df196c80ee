"""The only training loop. It knows neither methods nor loaders."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equimod.models.ssl import SSL
from equimod.pipelines.batch import Batch
from equimod.pipelines.build import Pipeline
from equimod.pipelines.errors import EquimodError
from equimod.pipelines.sampler import Cursor
from equimod.train.distributed import DistInfo, any_rank, mean_over_ranks
from equimod.train.grad_cache import GradCache
from equimod.train.optimizers import kept_tensors, set_weight_decay
from equimod.train.report import Reporter

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def image_dtype(precision: str) -> torch.dtype:
    """What the pipeline makes images in: what the encoder takes them in."""
    return AUTOCAST[precision] or torch.float32


class NotFiniteError(EquimodError):
    """A loss or a weight is no number any more: the message gives step, learning rate and the last good checkpoint."""


@dataclass(frozen=True)
class TrainState:
    """What is trained and how."""

    model: SSL
    optimizer: torch.optim.Optimizer
    grad_cache: GradCache
    learning_rate: Callable[[int], float]  # of a step, counted over the whole run
    weight_decay: Callable[[int], float]  # the same

    @property
    def steadier(self) -> str:
        """The options that keep numbers finite."""
        return "a lower --optim.lr" + ("" if self.grad_cache.autocast is None else " or --precision fp32")


@dataclass(frozen=True)
class RunContext:
    """The surroundings of a training: its ranks, its length, and what it reports and saves, and how often."""

    dist_info: DistInfo
    reporter: Reporter
    epochs: int
    log_every: int  # steps
    checkpoint_every: int  # steps
    validate_every: int | None  # steps
    validate: Callable[[], dict[str, float]]  # accuracies in percent by name, without a trace in what is trained
    save: Callable[[Cursor, int], str]  # writes the checkpoint of a cursor and global step, and returns its name
    last_good: str  # name of the checkpoint that the run starts from
    stop_asked: Callable[[], bool]


def train(state: TrainState, pipeline: Pipeline, start: Cursor, context: RunContext) -> bool:
    """Train from `start` to the end, or until a rank is asked to stop. Returns whether the end was reached.

    Checkpoints are saved every `checkpoint_every` steps and at the end, after the losses up to there, and all that is
    saved, were seen to be finite. The host waits for the device in steps that log or save, and nowhere else (with a
    gradient scaler, in every step). Raises NotFiniteError.
    """
    steps = len(pipeline)
    total = context.epochs * steps
    done = start.epoch * steps + start.step
    buffer, stages, last_good = LossBuffer(done, state, context.dist_info), pipeline.stages, context.last_good
    for batch in stages.record_each("wait", pipeline.epochs(start, context.epochs)):
        epoch, lr = done // steps, state.learning_rate(done)
        with stages.record("optimizer", batch.label.device):
            state.model.before_step(done / total)
            set_weight_decay(state.optimizer, state.weight_decay(done))
        buffer.add(train_step(state, batch, lr))
        done += 1
        stopping = any_rank(context.stop_asked(), context.dist_info)
        logging = done == total or done % context.log_every == 0
        saving = stopping or done == total or done % context.checkpoint_every == 0
        if saving or logging:
            losses = buffer.losses(lr, last_good)
            if logging:
                with stages.record("logging"):
                    context.reporter.log(done, epoch, lr, losses)
        if context.validate_every and (done == total or done % context.validate_every == 0):
            with stages.record("logging"):
                context.reporter.validation(done, context.validate())
        if saving:
            with stages.record("checkpoint"):
                assert_finite(state, done, lr, last_good, context.dist_info)
                context.reporter.sync()
                last_good = context.save(Cursor(*divmod(done, steps)), done)
            context.reporter.event({"event": "checkpoint", "step": done, "name": last_good})
            if stopping or done == total:
                context.reporter.time_spent(done)
        if stopping:
            return done == total
    return True


def train_step(state: TrainState, batch: Batch, lr: float) -> dict[str, Tensor]:
    """Forward, backward and optimizer on one batch. Returns the losses of this rank, detached, on the device."""
    stages, device = state.grad_cache.stages, batch.label.device
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    losses = state.grad_cache(batch)
    with stages.record("optimizer", device):
        state.grad_cache.scaler.step(state.optimizer)
        state.grad_cache.scaler.update()
    return {name: loss.detach() for name, loss in losses.items()}


def assert_finite(state: TrainState, done: int, lr: float, last_good: str, dist_info: DistInfo) -> None:
    """Raise NotFiniteError, on every rank, where a weight, momentum or running statistic of any rank is not finite."""
    kept = {f"momentum of {name}": tensor for name, tensor in kept_tensors(state.model, state.optimizer)}
    tensors = {**state.model.state_dict(), **{name: tensor for name, tensor in kept.items() if " of step/" not in name}}
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    largest = torch._foreach_norm(list(floats.values()), ord=math.inf)
    finite = torch.stack([value.isfinite() for value in largest]).tolist()
    if any_rank(not all(finite), dist_info):
        named = [name for name, is_finite in zip(floats, finite, strict=True) if not is_finite]
        what = f"{named[0]} is not finite" if named else "another rank has weights that are not finite"
        raise _not_finite(state, what, done, lr, last_good)


def _not_finite(state: TrainState, what: str, step: int, lr: float, last_good: str) -> NotFiniteError:
    return NotFiniteError(
        f"{what} in step {step} (learning rate {lr:.3g}); last good checkpoint: {last_good}; train anew, in another "
        f"--output, with {state.steadier}"
    )


class LossBuffer:
    """The losses of the steps since the host last read them, kept on the device."""

    def __init__(self, done: int, state: TrainState, dist_info: DistInfo) -> None:
        self._done, self._state, self._dist_info = done, state, dist_info
        self._steps: list[dict[str, Tensor]] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        self._steps.append(losses)

    def losses(self, lr: float, last_good: str) -> dict[str, float]:
        """The losses of the last step, averaged over the ranks; NotFiniteError if any step since was not finite."""
        stacked = {name: torch.stack([step[name] for step in self._steps]) for name in self._steps[0]}
        values = {name: value.tolist() for name, value in mean_over_ranks(stacked, self._dist_info).items()}
        for offset, loss in enumerate(values["loss"]):
            if not math.isfinite(loss):
                raise _not_finite(self._state, f"the loss is {loss}", self._done + offset + 1, lr, last_good)
        self._done += len(self._steps)
        self._steps.clear()
        return {name: value[-1] for name, value in values.items()}
