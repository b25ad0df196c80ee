"""Fine-tuning: the whole network trained further on a share of the labels, as semi-supervised learning is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from equimod.models.encoder import Encoder
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.durable import durable_file
from equimod.pipelines.progress import track
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.records.selection import SelectedRecords
from equimod.train.config import ConfigError
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import FrozenEncoder, extract, top_k
from equimod.train.evaluation.trained_run import TrainedRun
from equimod.train.loop import AUTOCAST
from equimod.train.schedule import warmup_cosine

_MOMENTUM = "momentum:"  # before the name of a parameter
FOLDER = "fine-tuning"  # what an interrupted one goes on from, in that of eval.json


@dataclass(frozen=True)
class FineTuneSettings:
    """Those of SimCLR (Chen et al., 2020, B.5) for 1 and 10 %, at a batch of 256: SGD with Nesterov momentum, cosine
    decay by step, no weight decay, crops and flips."""

    percent: tuple[int, ...] = (1, 10, 100)
    epochs: tuple[int, ...] = (60, 30, 30)
    batch_size: int = 256  # or all images, where they are fewer
    lr: float = 0.05
    momentum: float = 0.9


SETTINGS = asdict(FineTuneSettings())


def run(trained: TrainedRun) -> Values:
    """fine_tune_1_top1 and fine_tune_1_top5 in percent, of the validation images, and those of 10 and 100 %.

    ConfigError where a class has no training image.
    """
    settings = FineTuneSettings()
    for percent, epochs in zip(settings.percent, settings.epochs, strict=True):
        yield from fine_tune(trained, percent, epochs, settings)


def fine_tune(trained: TrainedRun, percent: int, epochs: int, settings: FineTuneSettings) -> Values:
    """Those of a share of the labels. What is interrupted goes on behind the last epoch that was complete."""
    records = SelectedRecords(trained.train, chosen(trained.train, percent, trained.seed))
    batch_size = min(settings.batch_size, len(records))
    pipeline = build_pipeline(
        records,
        trained.config.evaluation_policy,
        batch_size=batch_size,
        seed=trained.seed,
        device=trained.encoder.device,
        with_x=False,
        workers=trained.workers,
    )
    model = _Classifier(deepcopy(trained.trunk), len(trained.train.classes)).to(trained.encoder.device)
    key = json.dumps([trained.identity["weights"], trained.seed, len(records), epochs, asdict(settings)])
    state = _State(trained.output / FOLDER / f"{percent}.safetensors", key, model, settings)
    precision, total, begun = trained.config.precision, epochs * len(pipeline), state.resume()
    autocast = AUTOCAST["fp32" if precision == "fp16" else precision]  # which would need a scaled loss
    steps = _steps(pipeline, range(begun, epochs), state)
    left = total - begun * len(pipeline)
    for step, (images, label) in track(steps, left, f"fine-tuning with {percent} %", "steps"):
        for group in state.optimizer.param_groups:
            group["lr"] = warmup_cosine(step, total_steps=total, warmup_steps=0, peak=settings.lr)
        with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(images)
        state.optimizer.zero_grad()
        F.cross_entropy(logits.float(), label).backward()
        state.optimizer.step()
    encoder = FrozenEncoder(model.encoder, autocast)
    x = trained.config.evaluation_policy.x
    val = extract(encoder, trained.val, x, trained.train.classes, workers=trained.workers)
    with torch.no_grad():
        scores = model.head(val.h)
    for k in (1, 5):
        yield f"fine_tune_{percent}_top{k}", top_k(scores, val.label, k)
    state.remove()


def chosen(records: Records, percent: int, seed: int) -> NDArray[np.int64]:
    """Positions of a share of every class, rounded up, in ascending order; a smaller share is part of a larger one.

    ConfigError for a class without images.
    """
    found = []
    for number, name in enumerate(records.classes):
        positions = np.flatnonzero(records.label == number)
        if not len(positions):
            raise ConfigError(f"--fine-tune has no training image of {name!r}; give others with --train")
        mixed = np.random.default_rng((seed, number)).permutation(positions)
        found.append(mixed[: -(-len(positions) * percent // 100)])
    return np.sort(np.concatenate(found))


class _Classifier(nn.Module):
    """The encoder with a classifier that starts from zero."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.head = nn.Linear(encoder.feature_dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(images))
        return scores


class _State:
    """Weights and momenta after each epoch, in one file."""

    def __init__(self, path: Path, key: str, model: nn.Module, settings: FineTuneSettings) -> None:
        self._path, self._key, self._model = path, key, model
        self._parameters = dict(model.named_parameters())
        self.optimizer = torch.optim.SGD(
            self._parameters.values(), lr=settings.lr, momentum=settings.momentum, nesterov=True
        )

    def resume(self) -> int:
        """Take over what the file holds of the same fine-tuning. Returns the epochs that are done."""
        try:
            with safetensors.safe_open(self._path, "pt") as file:
                about: dict[str, Any] = file.metadata() or {}
            if about.get("key") != self._key:
                return 0
            tensors = safetensors.torch.load_file(self._path)
        except (OSError, safetensors.SafetensorError):  # none, or a damaged one
            return 0
        self._model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith(_MOMENTUM)})
        for name, parameter in self._parameters.items():
            if (momentum := tensors.get(f"{_MOMENTUM}{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
        return int(about["epochs"])

    def save(self, epochs: int) -> None:
        """Keep the state after so many epochs."""
        states = {name: self.optimizer.state[p] for name, p in self._parameters.items() if p in self.optimizer.state}
        buffers = {f"{_MOMENTUM}{name}": of_parameter["momentum_buffer"] for name, of_parameter in states.items()}
        tensors = {name: t.contiguous() for name, t in (self._model.state_dict() | buffers).items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(self._path) as out:
            out.write(safetensors.torch.save(tensors, {"key": self._key, "epochs": str(epochs)}))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # where it holds that of another share
            self._path.parent.rmdir()


def _steps(pipeline: Pipeline, epochs: range, state: _State) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """The number of each step with its images and labels; the state is kept after each epoch."""
    for epoch in epochs:
        for number, batch in enumerate(pipeline.epoch(epoch), epoch * len(pipeline)):
            yield number, (batch.views[0].image, batch.label)
        state.save(epoch + 1)
