"""The optimizers of a run, which parameters have weight decay, and what an optimizer keeps of each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from equimod.models.ssl import SSL
from equimod.train.config.optim import OptimSettings
from equimod.train.lars import LARS, lars_groups

_MOMENTUM = "momentum_buffer"


def build_optimizer(settings: OptimSettings, model: SSL) -> torch.optim.Optimizer:
    """The optimizer that settings describe, over the trained parameters of `model`."""
    if settings.name == "adamw":
        groups = adamw_groups(model)
        return torch.optim.AdamW(groups, settings.lr, settings.betas, weight_decay=settings.weight_decay)
    return LARS(
        lars_groups(model),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        trust_coefficient=settings.trust_coefficient,
    )


def adamw_groups(model: SSL) -> list[dict[str, Any]]:
    """The trained parameters of `model` for AdamW: those with weight decay, and those without, as in timm: biases and
    norms (one dimension), and what the encoder says has none, such as position embeddings."""
    without = {model.encoder.get_parameter(name) for name in _parameters_of(model) & model.encoder.no_weight_decay()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1 and p not in without]},
        {"params": [p for p in trained if p.ndim <= 1 or p in without], "weight_decay": 0.0},
    ]


def _parameters_of(model: SSL) -> set[str]:
    return {name for name, _ in model.encoder.named_parameters()}


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """For the parameters that have any, the first group."""
    optimizer.param_groups[0]["weight_decay"] = weight_decay


def kept_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What the optimizer keeps of each parameter that has taken a step: its momentum by the parameter's name, and
    anything else with a prefix, such as "exp_avg/NAME"."""
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            yield (name if key == _MOMENTUM else f"{key}/{name}"), tensor


def restore_tensors(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `kept_tensors` gave for a model of the same parameters. ValueError where it has others."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, name = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or tensor.shape not in (parameter.shape, torch.Size()):
            raise ValueError(f"there is no parameter for {key}, {list(tensor.shape)}")
        is_count = kind == "step"  # of AdamW, a number which stays on the host
        kept = tensor if is_count else torch.zeros_like(parameter).copy_(tensor)
        optimizer.state[parameter][kind or _MOMENTUM] = kept
