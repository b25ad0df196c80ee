"""The run that evaluators are given: a checkpoint with its model, and the data to evaluate it on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from equimod.models.equimod import EquiMod
from equimod.models.ssl import SSL
from equimod.pipelines.images import open_images
from equimod.pipelines.policy import AugmentationPolicy
from equimod.pipelines.progress import say
from equimod.pipelines.records.protocol import Records
from equimod.train.checkpoint import CheckpointError, hold_model, load_model
from equimod.train.config import CONFIG, Config, differences
from equimod.train.data import check_classes
from equimod.train.evaluation.features import Features, FrozenEncoder, FrozenLayer, ViewSet, extract
from equimod.train.loop import AUTOCAST
from equimod.train.run import build_model


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, with the data it is evaluated on.

    Features are computed once, for the first evaluator that needs them: its duration in eval.json includes theirs.
    """

    folder: Path
    config: Config  # data, val: what to evaluate on
    identity: dict[str, Any]  # of the checkpoint, for eval.json
    model: SSL
    train: Records
    val: Records
    seed: int
    workers: int | None

    @property
    def predictor(self) -> EquiMod:
        """EquiMod's module. ValueError where the run was trained without."""
        if self.model.equimod is None:
            raise ValueError("this is measured with EquiMod's predictor, and this model has none")
        return self.model.equimod

    @property
    def policy(self) -> AugmentationPolicy:
        """The augmentation policy of the training."""
        return self.config.augment

    @cached_property
    def encoder(self) -> FrozenEncoder:
        return FrozenEncoder(self.model.encoder, AUTOCAST[self.config.precision])

    @cached_property
    def predictor_views(self) -> ViewSet:
        """x and views of the validation images as the training drew them, represented by what EquiMod works on.
        ValueError where the run was trained without."""
        layer, encoder = self.predictor.settings.layer, self.encoder
        if layer is not None:
            precision = AUTOCAST[self.config.precision]
            encoder = FrozenLayer(self.model.encoder, precision, layer, self.predictor.feature_dim)
        return replace(self.view_set(self.val, self.policy), encoder=encoder)

    def view_set(self, records: Records, policy: AugmentationPolicy) -> ViewSet:
        """x and views of `records`, drawn from `policy` with the seed of the evaluation."""
        return ViewSet(self.encoder, records, policy, seed=self.seed, workers=self.workers)

    @cached_property
    def train_features(self) -> Features:
        return self._features(self.train)

    @cached_property
    def val_features(self) -> Features:
        return self._features(self.val)

    def _features(self, records: Records) -> Features:
        x = self.config.evaluation_policy.x
        return extract(self.encoder, records, x, self.train.classes, workers=self.workers)


def open_trained_run(folder: Path, config: Config, path: Path | None, *, seed: int, workers: int | None) -> TrainedRun:
    """Load a checkpoint of the run in `folder`, the newest where `path` is None, on the GPU where there is one and
    the run was not told to leave it alone.

    `config`: of the run, with data and val set to what to evaluate on; without val, that is the training images. Raises
    CheckpointError where there is no checkpoint or it does not fit, RecordsError for bad records, ConfigError where
    classes of val are unknown.
    """
    checkpoint, tensors = hold_model(folder, path, say)  # before anything that takes long
    if changed := differences(config, checkpoint.config):
        raise CheckpointError(
            f"{folder / CONFIG} is not that of {checkpoint.path.name}: {', '.join(changed)}; copy that one's there"
        )
    assert config.data is not None
    train = val = open_images(config.data, config.labels)
    if config.val:
        val = open_images(config.val, config.labels)
        check_classes(train, val, config.val)
    model = build_model(config, train)
    load_model(checkpoint.path, tensors, model)
    model.to("cuda" if torch.cuda.is_available() and config.system.device != "cpu" else "cpu")
    torch.backends.cudnn.deterministic = True  # so that features are the same bits each time
    return TrainedRun(folder, config, checkpoint.identity, model, train, val, seed, workers)
