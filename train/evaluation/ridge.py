"""Ridge regression in closed form, in float64, from the means of products: data are gone through once, in batches."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-12  # share of a mean square


def products(features: Tensor, targets: Tensor) -> Tensor:
    """Sum of the outer product of (1, features, targets) with itself: float64 (1+F+T, 1+F+T).

    `features` (N,F), `targets` (N,T). Divided by N it is the `moments` of `fit`.
    """
    rows = torch.cat([torch.ones_like(features[:, :1]).double(), features.double(), targets.double()], dim=1)
    return rows.T @ rows


def fit(moments: Tensor, *, features: int, ridge: float) -> Tensor:
    """Weights (1+F,T) of the regression, for 1 and the F features.

    `moments`: float64 (1+F+T, 1+F+T), mean of the outer product of (1, features, targets) with itself. `ridge`: penalty
    on the squared weights, of features and targets that are standardised, beside the mean squared error.
    """
    mean, covariance = _mean_and_covariance(moments)
    deviation = covariance.diagonal().sqrt()
    scale = torch.where(deviation > 0, deviation, torch.inf)  # what never varies gets no weight
    correlation = covariance / scale.outer(scale)
    penalty = ridge * torch.eye(features, dtype=moments.dtype, device=moments.device)
    solved = torch.linalg.solve(correlation[:features, :features] + penalty, correlation[:features, features:])
    slope = solved / scale[:features, None] * deviation[features:]
    return torch.cat([(mean[features:] - mean[:features] @ slope)[None], slope])


def error_and_variance(weights: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of the regression `weights` (1+F,T) on data with these `moments`, and their variance: (T,)."""
    inputs = len(weights)
    of_inputs, mixed, of_targets = moments[:inputs, :inputs], moments[:inputs, inputs:], moments[inputs:, inputs:]
    error = of_targets.diagonal() - 2 * (weights * mixed).sum(0) + (weights * (of_inputs @ weights)).sum(0)
    return error, _mean_and_covariance(moments)[1].diagonal()[inputs - 1 :]


def r2(weights: Tensor, moments: Tensor) -> Tensor:
    """R2 (T,) of the regression `weights` (1+F,T) on data with these `moments`; NaN for a target that never varies."""
    error, variance = error_and_variance(weights, moments)
    return torch.where(variance > 0, 1 - error / variance, torch.nan)


def _mean_and_covariance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Of features and targets; variances that are rounding error alone are 0."""
    mean, square = moments[0, 1:], moments.diagonal()[1:]
    covariance = moments[1:, 1:] - mean.outer(mean)
    variance = covariance.diagonal()
    variance[variance <= _ROUNDING * square] = 0
    return mean, covariance
