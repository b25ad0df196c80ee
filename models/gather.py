"""All-gather and sum over the ranks with the exact gradient: what lets a loss see the global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# One message into one tensor, where lists of tensors take a copy of each on a GPU. torch 2.14 has another name for it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def rank() -> int:
    """This process among the ranks; 0 where no process group is up."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 where no process group is up."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(t: Tensor) -> Tensor:
    """Rows of all ranks, in rank order: (n, ...) -> (world_size * n, ...); every rank must hold the same shape.

    The gradient of a rank's rows is the sum of what all ranks' losses send back to them, so the mean of the
    ranks' parameter gradients is the gradient of the mean of the ranks' losses.
    """
    return t if world_size() == 1 else _Gather.apply(t)


def sum_over_ranks(t: Tensor) -> Tensor:
    """The sum of the ranks' tensors, on every rank; its gradient is exact in the same sense as that of `gather`."""
    return t if world_size() == 1 else _Sum.apply(t)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return _total(t)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _total(gradient)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        gathered = t.new_empty(world_size() * len(t), *t.shape[1:])
        _all_gather(gathered, t.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _total(gradient).chunk(world_size())[rank()]


def _total(t: Tensor) -> Tensor:
    total = t.clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
    dist.all_reduce(total)
    return total
