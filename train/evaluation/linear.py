"""Linear evaluation (paper, Sec. 3.2.1): a classifier trained on augmented images through the frozen encoder."""

from __future__ import annotations

from dataclasses import asdict

from equimod.pipelines.policy import EVALUATION_POLICIES
from equimod.train.evaluation import Values
from equimod.train.evaluation.linear_probe import ProbeSettings, on_images
from equimod.train.evaluation.trained_run import TrainedRun

SETTINGS = asdict(ProbeSettings())


def run(trained: TrainedRun) -> Values:
    """linear_top1 and linear_top5 in percent."""
    policy = EVALUATION_POLICIES[trained.config.dataset]
    return on_images(trained.view_set(trained.train, policy), trained.val_features)
