"""Training by SGD as evaluations do it, kept on disk after every epoch, so that one that is interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import nn

from equimod.pipelines.durable import durable_file
from equimod.pipelines.progress import track
from equimod.train.distributed import DistInfo, assert_same_on_all_ranks
from equimod.train.schedule import warmup_cosine

FOLDER = "unfinished"  # beside eval.json
_MOMENTUM = "momentum:"  # before the name of a parameter

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """Where a training is kept, and the ranks that share it."""

    path: Path | None = None  # one file; None: nowhere
    key: str = ""  # what the training depends on: that of another key is not gone on with
    dist_info: DistInfo | None = None  # None: this process alone

    @property
    def by_this_rank(self) -> bool:
        """Whether it is this rank that writes it."""
        return self.path is not None and (self.dist_info is None or self.dist_info.rank == 0)

    def remove(self) -> None:
        """Remove what is kept."""
        if self.path is not None and self.by_this_rank:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # where it holds others
                self.path.parent.rmdir()


class KeptTraining:
    """SGD with Nesterov momentum and cosine decay by step on the parameters of `model`."""

    def __init__(self, model: nn.Module, kept: Kept, *, lr: float, momentum: float) -> None:
        self._model, self._kept, self._lr = model, kept, lr
        self._parameters = dict(model.named_parameters())
        self.optimizer = torch.optim.SGD(self._parameters.values(), lr=lr, momentum=momentum, nesterov=True)

    def batches(self, load: Callable[[int], Iterator[T]], epochs: int, steps: int, what: str) -> Iterator[T]:
        """The batches of all `epochs`, of `steps` each, that are not done yet; `load` makes those of an epoch.

        The learning rate is that of the step. `what` names the progress.
        """
        begun, total = self._resume(), epochs * steps
        left = track(self._numbered(load, range(begun, epochs), steps), total - begun * steps, what, "steps")
        for step, batch in left:
            for group in self.optimizer.param_groups:
                group["lr"] = warmup_cosine(step, total_steps=total, warmup_steps=0, peak=self._lr)
            yield batch

    def _numbered(self, load: Callable[[int], Iterator[T]], epochs: range, steps: int) -> Iterator[tuple[int, T]]:
        for epoch in epochs:
            yield from enumerate(load(epoch), epoch * steps)
            self._save(epoch + 1)

    def _resume(self) -> int:
        """Take over what is kept of this training. Returns the epochs that are done."""
        done = self._load()
        if self._kept.dist_info is not None:
            assert_same_on_all_ranks(str(done), f"the epochs done in {self._kept.path}", self._kept.dist_info)
        return done

    def _load(self) -> int:
        if self._kept.path is None:
            return 0
        try:
            with safetensors.safe_open(self._kept.path, "pt") as file:
                about: dict[str, Any] = file.metadata() or {}
            if about.get("key") != self._kept.key:
                return 0
            tensors = safetensors.torch.load_file(self._kept.path)
        except (OSError, safetensors.SafetensorError):  # none, or a damaged one
            return 0
        self._model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith(_MOMENTUM)})
        for name, parameter in self._parameters.items():
            if (momentum := tensors.get(f"{_MOMENTUM}{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
        return int(about["epochs"])

    def _save(self, epochs: int) -> None:
        if self._kept.path is None or not self._kept.by_this_rank:
            return
        states = {name: self.optimizer.state[p] for name, p in self._parameters.items() if p in self.optimizer.state}
        buffers = {f"{_MOMENTUM}{name}": of_parameter["momentum_buffer"] for name, of_parameter in states.items()}
        tensors = {name: t.contiguous() for name, t in (self._model.state_dict() | buffers).items()}
        self._kept.path.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(self._kept.path) as out:
            out.write(safetensors.torch.save(tensors, {"key": self._kept.key, "epochs": str(epochs)}))
