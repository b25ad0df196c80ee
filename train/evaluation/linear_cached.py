"""The classifier of the linear evaluation on features of x that are computed once: quicker, without augmentation."""

from __future__ import annotations

from dataclasses import asdict

from equimod.train.evaluation import Values
from equimod.train.evaluation.linear_probe import ProbeSettings, on_features
from equimod.train.evaluation.trained_run import TrainedRun

SETTINGS = asdict(ProbeSettings())


def run(trained: TrainedRun) -> Values:
    """linear_cached_top1 and linear_cached_top5 in percent."""
    return on_features(trained.train_features, trained.val_features, seed=trained.seed)
