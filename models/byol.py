"""BYOL (Grill et al., 2020): predict the other view's projection by a target network that follows slowly."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from equimod.models.encoder import Encoder
from equimod.models.heads import mlp
from equimod.models.losses import byol_loss
from equimod.models.method import Method
from equimod.models.settings import BYOLSettings


class BYOL(Method):
    """Projector g, predictor, and the target: encoder and projector whose weights are moving averages."""

    def __init__(self, encoder: Encoder, settings: BYOLSettings) -> None:
        super().__init__()
        self.projector = mlp(encoder.feature_dim, (settings.hidden, settings.dim), end="linear", bias=settings.bias)
        self.predictor = mlp(settings.dim, (settings.hidden, settings.dim), end="linear", bias=settings.bias)
        self.target_encoder = deepcopy(encoder).requires_grad_(False)
        self.target_projector = deepcopy(self.projector).requires_grad_(False)
        self.momentum = settings.momentum

    def forward(self, h: tuple[Tensor, Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        q_i, q_j = self.on_views(self.predictor, torch.cat(self.on_views(self.projector, torch.cat(h))))
        with torch.no_grad():
            t_i, t_j = self.on_views(self.target_projector, torch.cat(targets))
        return byol_loss(q_i, q_j, t_i, t_j)

    @torch.no_grad()
    def target_forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """The target encoder's representations of both views, (N,F) each."""
        return self.on_views(self.target_encoder, views)

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Move the target towards the online network: momentum 1 - (1 - base) (cos(pi progress) + 1) / 2."""
        weight = (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for target, online in ((self.target_encoder, encoder), (self.target_projector, self.projector)):
            _follow(target, online, weight)


@torch.no_grad()
def _follow(target: nn.Module, online: nn.Module, weight: float) -> None:
    """target += weight · (online - target), running statistics included; counters are copied."""
    targets, onlines = ([*module.parameters(), *module.buffers()] for module in (target, online))
    pairs = list(zip(targets, onlines, strict=True))
    values, counters = ([pair for pair in pairs if pair[0].is_floating_point() is wanted] for wanted in (True, False))
    torch._foreach_lerp_([t for t, _ in values], [o for _, o in values], weight)
    if counters:  # which an encoder without batch norms has none of
        torch._foreach_copy_([t for t, _ in counters], [o for _, o in counters])
