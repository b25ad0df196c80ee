"""Validation beside a training: how well the class is found by now, measured without a trace in the training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from equimod.models.encoder import Encoder
from equimod.pipelines.errors import spaced
from equimod.pipelines.images import open_images
from equimod.pipelines.policy import CenterPolicy
from equimod.pipelines.progress import part_of_other_work
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.records.selection import spread_over
from equimod.train.config import Config, ConfigError
from equimod.train.evaluation.features import FrozenEncoder, extract
from equimod.train.evaluation.knn import classify
from equimod.train.evaluation.linear_probe import on_features
from equimod.train.loop import AUTOCAST

TRAINING_IMAGES = 10_000
"""Training images that neighbours and classifier are taken from, at most, spread evenly over them."""


@dataclass(frozen=True)
class Validation:
    """What a validation is made on."""

    train: Records
    val: Records
    x: CenterPolicy
    autocast: torch.dtype | None
    seed: int
    workers: int | None

    @classmethod
    def of(cls, config: Config, records: Records) -> Validation | None:
        """That of a run on `records`; None where none is asked for. Raises ConfigError without labels or val."""
        if config.log.validate_every is None:
            return None
        if not config.val or not records.classes:
            lacking = f"data={spaced(config.data or ())} has no labels" if config.val else "no val images are given"
            raise ConfigError(
                f"log.validate_every classifies validation images, and {lacking}; leave it out, or give "
                "--val and --data with labels"
            )
        val = open_images(config.val, config.labels)
        if not val.classes:
            raise ConfigError(
                f"log.validate_every classifies validation images, and val={spaced(config.val)} has no labels; leave "
                "it out, or give --val with labels"
            )
        x, autocast = config.evaluation_policy.x, AUTOCAST[config.precision]
        return cls(spread_over(records, TRAINING_IMAGES), val, x, autocast, config.seed, config.system.workers)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """knn_top1, linear_cached_top1 and their top5 in percent, as `equimod evaluate` has them, but of part of the
        training images. The encoder is left as it was."""
        training = encoder.training
        with part_of_other_work():
            try:
                frozen = FrozenEncoder(encoder, self.autocast)
                train, val = (
                    extract(frozen, records, self.x, self.train.classes, workers=self.workers)
                    for records in (self.train, self.val)
                )
            finally:
                encoder.train(training)
            return {**dict(classify(train, val)), **dict(on_features(train, val, seed=self.seed))}
