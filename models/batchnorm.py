"""Batch norm over the batches of all ranks, which waits for no device and speaks once in each direction."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equimod.models.gather import gather, world_size


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, on GPUs, on CPUs, and on "meta", where a step is only counted.

    Takes over parameters, buffers and children of `norm`; children, such as the activation in timm's BatchNormAct2d,
    come after it in their order. Every rank must hold the same number of values, two a channel or
    more: training splits the global batch evenly. torch's own asks all ranks for their numbers, and the host waits for
    the answer in every layer. Statistics are float32 or better; the output has the input's dtype. Not run on several
    GPUs yet.
    """

    momentum: float

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        if norm.momentum is None or not norm.track_running_stats:
            raise ValueError(f"{norm}: running statistics with a momentum are wanted")
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self._parameters, self._buffers, self._modules = norm._parameters, norm._buffers, norm._modules
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"input of shape {tuple(input.shape)}: (N,C) or (N,C,H,W) is wanted")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N,C) or (N,C,H,W) per channel."""
        normalised: Tensor
        if self.training:
            self._check_input_dim(input)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            normalised = _Normalise.apply(input, self.weight, self.bias, self)
        else:
            normalised = super().forward(input)
        for child in self.children():
            normalised = child(normalised)
        return normalised


class _Normalise(torch.autograd.Function):
    """weight · xhat + bias with xhat = (x - mean) / sqrt(var + eps), for mean and variance over all ranks' x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: SyncBatchNorm) -> Tensor:
        x, kernels = _dense(x), _kernels(x)
        mean, spread = kernels.joined(norm, x, gather(kernels.local(x, norm.eps)[None]))
        ctx.save_for_backward(x, weight, mean, spread)
        ctx.eps = norm.eps
        return kernels.normalised(x, weight, bias, mean, spread, norm.eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, spread = ctx.saved_tensors
        dx, dweight, dbias = _kernels(x).backward(_dense(gradient), x, weight, mean, spread, ctx.eps)
        _, of_weight, of_bias, _ = ctx.needs_input_grad
        return dx, dweight if of_weight else None, dbias if of_bias else None, None


class _Kernels(Protocol):
    """What devices compute differently. The spread is whichever measure of it they take."""

    @staticmethod
    def local(x: Tensor, eps: float) -> Tensor:
        """Mean and spread of this rank's x: (2,C)."""

    @staticmethod
    def joined(norm: SyncBatchNorm, x: Tensor, of_ranks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread (C,) over all ranks from theirs (R,2,C). Running statistics take them in."""

    @staticmethod
    def normalised(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor, eps: float
    ) -> Tensor: ...

    @staticmethod
    def backward(
        gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, spread: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx = scale · (g - mean(g) - xhat · mean(g · xhat)), means over all ranks; this rank's share of the others."""


class _OnGPU:
    """torch's kernels for its own SyncBatchNorm. The spread is 1 / sqrt(var + eps)."""

    @staticmethod
    def local(x: Tensor, eps: float) -> Tensor:
        return torch.stack(torch.batch_norm_stats(x, eps))

    @staticmethod
    def joined(norm: SyncBatchNorm, x: Tensor, of_ranks: Tensor) -> tuple[Tensor, Tensor]:
        means, spreads = of_ranks.unbind(1)
        counts = means.new_full((len(means),), x.numel() // x.shape[1])
        running = norm.running_mean, norm.running_var
        return torch.batch_norm_gather_stats_with_counts(x, means, spreads, *running, norm.momentum, norm.eps, counts)

    @staticmethod
    def normalised(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor, eps: float
    ) -> Tensor:
        return torch.batch_norm_elemt(x, weight, bias, mean, spread, eps)

    @staticmethod
    def backward(
        gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, spread: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_rank = torch.batch_norm_backward_reduce(gradient, x, mean, spread, weight, True, True, True)
        sums = torch.stack(of_rank[:2])
        dist.all_reduce(sums)
        counts = torch.full((world_size(),), x.numel() // x.shape[1], dtype=torch.int32, device=x.device)
        dx = torch.batch_norm_backward_elemt(gradient, x, mean, spread, weight, sums[0], sums[1], counts)
        return dx, *of_rank[2:]


class _OnCPU:
    """torch's batch norm of one process, given the statistics of all. The spread is the biased variance."""

    @staticmethod
    def local(x: Tensor, eps: float) -> Tensor:
        # The native kernel stores the batch's mean and unbiased variance when the momentum is 1, and in bf16
        # it is ten times faster than torch.var_mean on a float32 copy.
        n, channels = x.numel() // x.shape[1], x.shape[1]
        local = torch.zeros(2, channels, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        unit = torch.ones_like(local[0])
        F.batch_norm(x, local[0], local[1], unit, torch.zeros_like(unit), training=True, momentum=1.0)
        local[1] *= (n - 1) / n
        return local

    @staticmethod
    def joined(norm: SyncBatchNorm, x: Tensor, of_ranks: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = of_ranks.unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        count = x.numel() // x.shape[1] * len(means)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_((var * count / (count - 1)).to(norm.running_var.dtype), norm.momentum)
        return mean, var

    @staticmethod
    def normalised(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, spread: Tensor, eps: float
    ) -> Tensor:
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        return F.batch_norm(x, mean, spread, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(
        gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, spread: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = torch.ones_like(mean) if weight is None else weight
        # As if the statistics were constants; what flows through them is added below.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, spread, None, None, False, eps, [True, True, True]
        )
        sums = torch.stack([dweight, dbias])
        dist.all_reduce(sums)
        scale = weight * (spread + eps).rsqrt()
        through_var, through_mean = -scale * sums / (world_size() * x.numel() // x.shape[1])
        dx += F.batch_norm(x, mean, spread, through_var, through_mean, training=False, eps=eps)
        return dx, dweight, dbias


def _kernels(x: Tensor) -> type[_Kernels]:
    return _OnGPU if x.is_cuda else _OnCPU


def _dense(t: Tensor) -> Tensor:
    """In one of the layouts that torch's kernels take."""
    return t if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) else t.contiguous()
