"""How many directions the representations use, without any label: RankMe, and LiDAR, which discounts augmentations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice

import torch
from torch import Tensor

from equimod.pipelines.policy import AugmentationPolicy
from equimod.pipelines.records.selection import spread_over
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import ViewSet
from equimod.train.evaluation.trained_run import TrainedRun


@dataclass(frozen=True)
class RankSettings:
    """Those of Thilak et al. (2024) for LiDAR."""

    lidar_images: int = 1000  # or all, where they are fewer
    lidar_views: int = 50
    lidar_delta: float = 1e-4


SETTINGS = asdict(RankSettings())
_EPSILON = 1e-7  # of both papers
_BATCH_SIZE = 16  # images, each with all its views


def run(trained: TrainedRun) -> Values:
    """`rankme` of x of the validation images, `lidar` of their views as the training drew them."""
    yield "rankme", rankme(trained.val_features.h)
    yield "lidar", lidar_of(trained.view_set(trained.val, trained.policy))


def lidar_of(views: ViewSet, settings: RankSettings = RankSettings()) -> float:
    """LiDAR of some of the records, each with many views that are drawn from the policy's in turn."""
    drawn = tuple(islice(cycle(views.policy.views), settings.lidar_views))
    records = spread_over(views.records, settings.lidar_images)
    many = replace(views, records=records, policy=AugmentationPolicy(views.policy.x, drawn))
    found = [torch.stack(h, dim=1) for _, _, h in many.represent("LiDAR", batch_size=_BATCH_SIZE)]
    return lidar(torch.cat(found), settings.lidar_delta)


def rankme(h: Tensor) -> float:
    """RankMe (Garrido et al., 2023, Eq. 1-2) of representations h (N,F): between 1 and min(N, F).

    The exponential of the entropy of the singular values, as shares of their sum.
    """
    return _effective_rank(torch.linalg.svdvals(h.double()))


def lidar(h: Tensor, delta: float) -> float:
    """LiDAR (Thilak et al., 2024, Sec. 4) of representations h (N,Q,F) of Q views of N images: at least 1.

    The effective rank of W^-1/2 B W^-1/2, with B the covariance of the means of the images and W that of the views
    around them, plus `delta` on its diagonal.
    """
    h = h.double()
    mean = h.mean(1)
    around, between = (h - mean[:, None]).flatten(0, 1), mean - mean.mean(0)
    within = around.T @ around / len(around) + delta * torch.eye(h.shape[2], dtype=h.dtype, device=h.device)
    values, vectors = torch.linalg.eigh(within)
    # The eigenvalues of the product are the squares of these singular values.
    whitened = between @ (vectors / values.sqrt()) / len(between) ** 0.5
    return _effective_rank(torch.linalg.svdvals(whitened).square())


def _effective_rank(values: Tensor) -> float:
    share = values / values.sum() + _EPSILON
    return float((-(share * share.log()).sum()).exp())
