"""What torch's kernels for batch norm over ranks compute, which it has for GPUs alone, written down in its terms."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
from torch import Tensor


def in_place_of_torchs() -> AbstractContextManager[object]:
    """Have torch call the functions of this file."""
    kernels = {name: kernel for name, kernel in globals().items() if name.startswith("batch_norm")}
    return patch.multiple(torch, **kernels)


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
    return mean, (var + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share, total = (counts / counts.sum())[:, None], counts.sum()
    mean = (share * means).sum(0)
    var = (share * (invstds**-2 - eps + (means - mean) ** 2)).sum(0)
    running_mean.mul_(1 - momentum).add_(momentum * mean)
    running_var.mul_(1 - momentum).add_(momentum * var * total / (total - 1))
    return mean, (var + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    xhat = (x - _wide(mean, x)) * _wide(invstd, x)
    return xhat if weight is None or bias is None else xhat * _wide(weight, x) + _wide(bias, x)


def batch_norm_backward_reduce(
    g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, *wanted: bool
) -> tuple[Tensor, ...]:
    dims = [d for d in range(x.ndim) if d != 1]
    sum_dy, sum_dy_xmu = g.sum(dims), (g * (x - _wide(mean, x))).sum(dims)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy


def batch_norm_backward_elemt(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    counts: Tensor,
) -> Tensor:
    scale = invstd if weight is None else invstd * weight
    through_var = (x - _wide(mean, x)) * _wide(invstd**2 * sum_dy_xmu / counts.sum(), x)
    return (g - _wide(sum_dy / counts.sum(), x) - through_var) * _wide(scale, x)


def _wide(of_channels: Tensor, x: Tensor) -> Tensor:
    return of_channels[:, None, None] if x.ndim == 4 else of_channels
