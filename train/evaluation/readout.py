"""How much of a view's parameters a linear map recovers from the representations of the image and of the view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import AFTER_JITTER
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import ViewSet
from equimod.train.evaluation.trained_run import TrainedRun

RIDGE = 1e-3
"""Penalty on the squared weights, of features and parameters that are standardised, beside the mean squared error."""

_ROUNDING = 1e-12  # share of a mean square
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
    weights = fit(_moments(train), features=2 * train.encoder.feature_dim)
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


def fit(moments: Tensor, *, features: int) -> Tensor:
    """Ridge regression in closed form: weights (1+F,T) for 1 and the F features.

    `moments`: float64 (1+F+T, 1+F+T), mean of the outer product of (1, features, targets) with itself.
    """
    mean, covariance = _mean_and_covariance(moments)
    deviation = covariance.diagonal().sqrt()
    scale = torch.where(deviation > 0, deviation, torch.inf)  # what never varies gets no weight
    correlation = covariance / scale.outer(scale)
    ridge = RIDGE * torch.eye(features, dtype=moments.dtype, device=moments.device)
    solved = torch.linalg.solve(correlation[:features, :features] + ridge, correlation[:features, features:])
    slope = solved / scale[:features, None] * deviation[features:]
    return torch.cat([(mean[features:] - mean[:features] @ slope)[None], slope])


def r2(weights: Tensor, moments: Tensor) -> Tensor:
    """R2 (T,) of the regression `weights` (1+F,T) on data with these `moments`; NaN for a target that never varies."""
    inputs = len(weights)
    of_inputs, mixed, of_targets = moments[:inputs, :inputs], moments[:inputs, inputs:], moments[inputs:, inputs:]
    error = of_targets.diagonal() - 2 * (weights * mixed).sum(0) + (weights * (of_inputs @ weights)).sum(0)
    variance = _mean_and_covariance(moments)[1].diagonal()[inputs - 1 :]
    return torch.where(variance > 0, 1 - error / variance, torch.nan)


def _mean_and_covariance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Of features and targets; variances that are rounding error alone are 0."""
    mean, square = moments[0, 1:], moments.diagonal()[1:]
    covariance = moments[1:, 1:] - mean.outer(mean)
    variance = covariance.diagonal()
    variance[variance <= _ROUNDING * square] = 0
    return mean, covariance


def _moments(views: ViewSet) -> Tensor:
    """See `fit`: over every view of every image."""
    columns = 1 + 2 * views.encoder.feature_dim + len(_OPERATORS)
    total = torch.zeros(columns, columns, dtype=torch.float64, device=views.encoder.device)
    start = 0
    for batch, h_x, h in views.represent("read-out"):
        size = torch.from_numpy(views.records.size[start : start + len(batch)])
        start += len(batch)
        for view, h_v in zip(batch.views, h, strict=True):
            parts = (torch.ones(len(batch), 1, device=h_x.device), h_x, h_v)
            row = torch.cat([*parts, targets(view.params, size).to(h_x.device)], dim=1)  # float64, as the last part
            total += row.T @ row
    return total / (len(views.records) * len(views.policy.views))
