"""LARS (You et al., 2017), without a single wait for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_Tensors = list[Tensor] | tuple[Tensor, ...]


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step is scaled, tensor by tensor, by the ratio of the weights' norm to the gradient's.

    For a tensor p with gradient g:  g += weight_decay · p;  ratio = trust_coefficient · |p| / |g|, 1 where either
    norm is 0;  buffer = momentum · buffer + lr · ratio · g;  p -= buffer. The learning rate stands inside the buffer,
    so a change of it acts on new gradients only. Groups with lars=False have ratio 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lars": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Takes no closure: the loss is never evaluated again."""
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        gradients: _Tensors = [p.grad for p in params if p.grad is not None]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
        if group["lars"]:
            ratios = _trust_ratios(params, gradients, group["trust_coefficient"])
            gradients = torch._foreach_mul(gradients, _spread(ratios, buffers))
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients, alpha=group["lr"])
        torch._foreach_sub_(params, buffers)


def _trust_ratios(params: _Tensors, gradients: _Tensors, trust_coefficient: float) -> Tensor:
    weight = torch.stack(torch._foreach_norm(params))
    gradient = torch.stack(torch._foreach_norm(gradients))
    return torch.where((weight > 0) & (gradient > 0), trust_coefficient * weight / gradient, 1.0)


def _spread(ratios: Tensor, tensors: _Tensors) -> _Tensors:
    """The ratio of each tensor in every element of one like it. By single values, foreach multiplies one by one.

    `tensors` are dense in memory, as momenta are; a gradient may be any view.
    """
    counts = [t.numel() for t in tensors]
    flat = torch.cat([ratio.expand(count) for ratio, count in zip(ratios.unbind(), counts, strict=True)])
    return [part.as_strided(t.shape, t.stride()) for part, t in zip(flat.split(counts), tensors, strict=True)]


def lars_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters of `module` for `LARS`: weights, then biases and BN parameters (one dimension), which
    have neither weight decay nor LARS (paper, Sec. 3.1)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "lars": False},
    ]
