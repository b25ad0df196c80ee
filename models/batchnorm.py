"""Batch norm over the batches of all ranks, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equimod.models.gather import gather


class GlooSyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, on the CPU, where torch's SyncBatchNorm refuses to run.

    Takes over parameters and buffers of `norm`. Every rank must hold the same number of values, two a channel or
    more: training splits the global batch evenly. Statistics are float32 or better; the output has the input's dtype.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"input of shape {tuple(input.shape)}: (N,C) or (N,C,H,W) is wanted")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N,C) or (N,C,H,W) per channel."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        unit = torch.ones(self.num_features, dtype=torch.promote_types(input.dtype, torch.float32))
        weight = unit if self.weight is None else self.weight
        bias = torch.zeros_like(unit) if self.bias is None else self.bias
        mean, var = self._statistics(input.detach(), unit)
        normalised: Tensor = _Normalise.apply(input, weight, bias, mean, var, self.eps)
        return normalised

    @torch.no_grad()
    def _statistics(self, input: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) over all ranks, which the running statistics take in."""
        # The native kernel stores the batch's mean and unbiased variance when the momentum is 1, and in bf16
        # it is ten times faster than torch.var_mean on a float32 copy.
        local = torch.zeros(2, self.num_features, dtype=unit.dtype)
        F.batch_norm(input, local[0], local[1], unit, torch.zeros_like(unit), training=True, momentum=1.0)
        n = input.numel() // self.num_features
        local[1] *= (n - 1) / n
        means, variances = gather(local[None]).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        count = n * len(means)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)
        return mean, var


class _Normalise(torch.autograd.Function):
    """weight · xhat + bias with xhat = (x - mean) / sqrt(var + eps), for a mean and a variance over all ranks' x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        # As if the statistics were constants; what flows through them is added below:
        # dx = scale · (g - mean(g) - xhat · mean(g · xhat)), the means over all ranks.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([dweight, dbias])
        dist.all_reduce(sums)
        scale = weight * (var + ctx.eps).rsqrt()
        through_var, through_mean = -scale * sums / (dist.get_world_size() * x.numel() // x.shape[1])
        dx += F.batch_norm(x, mean, var, through_var, through_mean, training=False, eps=ctx.eps)
        return dx, dweight, dbias, None, None, None
