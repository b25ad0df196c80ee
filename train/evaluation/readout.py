"""How much of a view's parameters a linear map recovers from the representations of the image and of the view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import AFTER_JITTER
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import ViewSet
from equimod.train.evaluation.ridge import fit, products, r2
from equimod.train.evaluation.trained_run import TrainedRun

RIDGE = 1e-3
"""Penalty on the squared weights, of features and parameters that are standardised, beside the mean squared error."""

_OPERATORS = ("crop",) * 4 + ("jitter",) * 4 + ("flip", *AFTER_JITTER)  # by column of `targets`


SETTINGS = {"ridge": RIDGE}


def run(trained: TrainedRun) -> Values:
    """See `measure`: fitted to views of the training images, on views of the validation images."""
    policy = trained.policy
    return measure(trained.view_set(trained.train, policy), trained.view_set(trained.val, policy))


def measure(train: ViewSet, val: ViewSet) -> Values:
    """R2 on views of `val` of a ridge regression fitted to views of `train`, by operator, such as readout_r2_crop.

    1 where h of (x, view) tells the parameters exactly and linearly, 0 where it tells no more than their mean does; it
    may be negative. Mean over an operator's components; one that never varies is left out.
    """
    weights = fit(_moments(train), features=2 * train.encoder.feature_dim, ridge=RIDGE)
    scores = r2(weights, _moments(val)).tolist()
    for operator in dict.fromkeys(_OPERATORS):
        of_operator = [s for s, of in zip(scores, _OPERATORS, strict=True) if of == operator and not math.isnan(s)]
        if of_operator:
            yield f"readout_r2_{operator}", sum(of_operator) / len(of_operator)


def targets(params: AugmentationParams, size: Tensor) -> Tensor:
    """What is to be recovered: float64 (N,12); `size` (N,2), width and height of the original images.

    The crop's x, y, width and height as shares of the image; brightness, contrast, saturation, hue; flip, gray, sigma
    of the blur, solarize.
    """
    switches = [column[:, None].double() for column in (params.flip, params.gray, params.sigma, params.solarize)]
    return torch.cat([params.crop / size.double().repeat(1, 2), params.factors, *switches], dim=1)


def _moments(views: ViewSet) -> Tensor:
    """Those of `ridge.fit`: over every view of every image."""
    columns = 1 + 2 * views.encoder.feature_dim + len(_OPERATORS)
    total = torch.zeros(columns, columns, dtype=torch.float64, device=views.encoder.device)
    start = 0
    for batch, h_x, h in views.represent("read-out"):
        size = torch.from_numpy(views.records.size[start : start + len(batch)].astype("int64"))
        start += len(batch)
        for view, h_v in zip(batch.views, h, strict=True):
            total += products(torch.cat([h_x, h_v], dim=1), targets(view.params, size).to(h_x.device))
    return total / (len(views.records) * len(views.policy.views))
