"""Linear evaluation (paper, Sec. 3.2.1): a classifier trained on augmented images through the frozen encoder."""

from __future__ import annotations

from dataclasses import asdict, replace

from equimod.train.config import ConfigError
from equimod.train.evaluation import Values
from equimod.train.evaluation.linear_probe import ProbeSettings, on_images
from equimod.train.evaluation.trained_run import TrainedRun

SETTINGS = asdict(ProbeSettings())


def run(trained: TrainedRun) -> Values:
    """linear_top1 and linear_top5 in percent. ConfigError where its batches do not split over the ranks."""
    batch_size, ranks = min(ProbeSettings().batch_size, len(trained.train)), trained.dist_info.world_size
    if batch_size % ranks:
        fitting = max(number for number in range(1, ranks) if batch_size % number == 0)
        raise ConfigError(
            f"--linear has batches of {batch_size} images, which {ranks} ranks cannot share evenly; start {fitting}"
        )
    images = trained.view_set(trained.train, trained.config.evaluation_policy)
    kept = replace(trained.kept("linear", SETTINGS), dist_info=trained.dist_info)
    return on_images(images, trained.val_features, kept=kept)
