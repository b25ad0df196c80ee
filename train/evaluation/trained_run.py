"""What evaluators are given: an encoder, of a run with all that belongs to it or of elsewhere, and data."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from equimod.models.encoder import Encoder
from equimod.models.equimod import EquiMod
from equimod.models.settings import OF_TIMM
from equimod.pipelines.images import open_images
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy
from equimod.pipelines.progress import say
from equimod.pipelines.records.protocol import Records, fingerprint
from equimod.pipelines.stored import FileDigest
from equimod.train.checkpoint import CheckpointError, hold_model, load_model
from equimod.train.config import CONFIG, Config, differences, is_run
from equimod.train.config.own_images import has_gpu
from equimod.train.data import check_classes
from equimod.train.distributed import DistInfo, first_on_each_node, training_device
from equimod.train.embedding.blocks import Blocks
from equimod.train.evaluation.features import Features, FrozenEncoder, FrozenLayer, ViewSet, labels_of
from equimod.train.evaluation.kept_training import FOLDER as UNFINISHED
from equimod.train.evaluation.kept_training import Kept
from equimod.train.evaluation.stored_features import stored_features
from equimod.train.loop import AUTOCAST
from equimod.train.opened_encoder import open_encoder
from equimod.train.run import build_model


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, or the encoder of an export or of timm, with the data it is evaluated on.

    Features are computed for the first evaluator that needs them, and kept: its duration in eval.json includes theirs.
    """

    folder: Path
    output: Path  # for eval.json and figures
    config: Config  # data, val: what to evaluate on
    identity: dict[str, Any]  # of the checkpoint or of the encoder, for eval.json
    trunk: Encoder
    equimod: EquiMod | None
    train: Records
    val: Records
    seed: int
    workers: int | None
    dist_info: DistInfo

    @property
    def predictor(self) -> EquiMod:
        """EquiMod's module. ValueError where the run was trained without."""
        if self.equimod is None:
            raise ValueError("this is measured with EquiMod's predictor, and this model has none")
        return self.equimod

    @property
    def policy(self) -> AugmentationPolicy:
        """The augmentation policy of the training."""
        return self.config.augment

    @cached_property
    def encoder(self) -> FrozenEncoder:
        return FrozenEncoder(self.trunk, AUTOCAST[self.config.precision])

    @cached_property
    def predictor_views(self) -> ViewSet:
        """x and views of the validation images as the training drew them, represented by what EquiMod works on.
        ValueError where the run was trained without."""
        layer, encoder = self.predictor.settings.layer, self.encoder
        if layer is not None:
            precision = AUTOCAST[self.config.precision]
            encoder = FrozenLayer(self.trunk, precision, layer, self.predictor.feature_dim)
        return replace(self.view_set(self.val, self.policy), encoder=encoder)

    def view_set(self, records: Records, policy: AugmentationPolicy) -> ViewSet:
        """x and views of `records`, drawn from `policy` with the seed of the evaluation."""
        return ViewSet(self.encoder, records, policy, seed=self.seed, workers=self.workers)

    @cached_property
    def train_features(self) -> Features:
        return self._features(self.train_blocks, self.train)

    @cached_property
    def val_features(self) -> Features:
        return self._features(self.val_blocks, self.val)

    @cached_property
    def train_blocks(self) -> Blocks:
        """Those of `train_features` on disk; of several ranks, all must ask at the same time."""
        return self._blocks(self.train)

    @cached_property
    def val_blocks(self) -> Blocks:
        """The same of `val_features`."""
        return self._blocks(self.val)

    def _blocks(self, records: Records) -> Blocks:
        return stored_features(
            self.output,
            self.identity["weights"],
            self.encoder,
            records,
            self.config.evaluation_policy.x,
            dist_info=self.dist_info,
            workers=self.workers,
        )

    def _features(self, blocks: Blocks, records: Records) -> Features:
        classes, device = self.train.classes, self.encoder.device
        return Features(blocks.load().to(device), labels_of(records, classes).to(device), tuple(classes))

    def kept(self, name: str, *settings: Any) -> Kept:
        """Where an evaluator keeps a training that depends on `settings`, on the encoder and on the training images."""
        of_train = fingerprint(self.train)
        depends = [self.identity["weights"], self.seed, of_train.table, of_train.content, *settings]
        return Kept(self.output / UNFINISHED / f"{name}.safetensors", json.dumps(depends))


def open_trained_run(
    source: Path,
    config: Config,
    path: Path | None,
    *,
    seed: int,
    workers: int | None,
    output: Path | None = None,
    dist_info: DistInfo | None = None,
) -> TrainedRun:
    """Load what `source` names, on the device of `dist_info`; None: alone, on `evaluation_device`.

    `source`: the folder of a run, whose checkpoint at `path` is taken, or its newest; that of an export; or timm:NAME.
    `config`: of the run or of the export's recipe, with data and val set to what to evaluate on; without val, that is
    the training images.
    `output`: folder for what is found; None: that of the run or of the export. Raises CheckpointError where there is no
    checkpoint or it does not fit, RecordsError for bad records, ConfigError where there is no such encoder or classes
    of val are unknown.
    """
    dist_info = dist_info or DistInfo(0, 0, 1, training_device(evaluation_device(config)))
    of_run = is_run(source, path)
    opened = None if of_run else open_encoder(str(source))  # before anything that takes long
    held = hold_model(source, path, say) if of_run else None
    if held is not None and (changed := differences(config, held[0].config)):
        raise CheckpointError(
            f"{source / CONFIG} is not that of {held[0].path.name}: {', '.join(changed)}; copy that one's there"
        )
    assert config.data is not None
    train = val = first_on_each_node(partial(open_images, config.data, config.labels), dist_info)
    if config.val:
        val = first_on_each_node(partial(open_images, config.val, config.labels), dist_info)
        check_classes(train, val, config.val)
    device = dist_info.device
    torch.backends.cudnn.deterministic = True  # so that features are the same bits each time
    if opened is not None:
        augment = _policy_of(opened.x) if str(source).startswith(OF_TIMM) else config.augment
        config = replace(config, encoder=opened.settings, augment=augment).on_device(device.type)
        identity = {"encoder": str(source), "weights": FileDigest.of_content(opened.weights).sha256}
        trunk, equimod = opened.encoder.to(device), None
    else:
        assert held is not None
        model = build_model(config, train)
        load_model(held[0].path, held[1], model)
        identity, trunk, equimod = held[0].identity, model.to(device).encoder, model.equimod
    return TrainedRun(source, output or source, config, identity, trunk, equimod, train, val, seed, workers, dist_info)


def evaluation_device(config: Config) -> str:
    """The GPU where there is one and the run was not told to leave it alone."""
    return "cuda" if has_gpu(config.system.device) else "cpu"


def _policy_of(x: CenterPolicy) -> AugmentationPolicy:
    """SimCLR's views, with the size and the normalisation of x."""
    return replace(POLICIES["simclr_imagenet"].at(x.size).normalized(x.normalize), x=x)
