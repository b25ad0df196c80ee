"""Fine-tuning: the whole network trained further on a share of the labels, as semi-supervised learning is measured."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from equimod.models.encoder import Encoder
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.records.selection import SelectedRecords
from equimod.train.config import ConfigError
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import FrozenEncoder, extract, top_k
from equimod.train.evaluation.kept_training import KeptTraining
from equimod.train.evaluation.trained_run import TrainedRun
from equimod.train.loop import AUTOCAST


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
    kept = trained.kept(f"fine-tuning-{percent}", len(records), epochs, asdict(settings))
    training = KeptTraining(model, kept, lr=settings.lr, momentum=settings.momentum)
    precision = trained.config.precision
    autocast = AUTOCAST["fp32" if precision == "fp16" else precision]  # which would need a scaled loss
    for batch in training.batches(pipeline.epoch, epochs, len(pipeline), f"fine-tuning with {percent} %"):
        images, label = batch.views[0].image, batch.label
        with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(images)
        training.optimizer.zero_grad()
        F.cross_entropy(logits.float(), label).backward()
        training.optimizer.step()
    encoder = FrozenEncoder(model.encoder, autocast)
    x = trained.config.evaluation_policy.x
    val = extract(encoder, trained.val, x, trained.train.classes, workers=trained.workers)
    with torch.no_grad():
        scores = model.head(val.h)
    for k in (1, 5):
        yield f"fine_tune_{percent}_top{k}", top_k(scores, val.label, k)
    kept.remove()


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
