"""Linear evaluation (paper, Sec. 3.2.1): a classifier trained on augmented images through the frozen encoder."""

from __future__ import annotations

from dataclasses import asdict, replace

from equimod.train.evaluation import Values
from equimod.train.evaluation.linear_probe import ProbeSettings, on_images
from equimod.train.evaluation.trained_run import TrainedRun

SETTINGS = asdict(ProbeSettings())


def run(trained: TrainedRun) -> Values:
    """linear_top1 and linear_top5 in percent."""
    images = trained.view_set(trained.train, trained.config.evaluation_policy)
    kept = replace(trained.kept("linear", SETTINGS), dist_info=trained.dist_info)
    return on_images(images, trained.val_features, kept=kept)
