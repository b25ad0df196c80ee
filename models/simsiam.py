"""SimSiam (Chen & He, 2021): predict the other view's projection, whose gradient is stopped."""

from __future__ import annotations

import torch
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.heads import mlp
from equimod.models.losses import simsiam_loss
from equimod.models.method import Method
from equimod.models.settings import SimSiamSettings


class SimSiam(Method):
    """Projector g and a predictor with a bottleneck."""

    def __init__(self, encoder: Encoder, settings: SimSiamSettings) -> None:
        super().__init__()
        self.projector = mlp(encoder.feature_dim, (*settings.hidden, settings.dim), end="plain norm")
        self.predictor = mlp(settings.dim, (settings.bottleneck, settings.dim), end="linear", bias=settings.bias)

    def forward(self, h: tuple[Tensor, Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        z_i, z_j = self.on_views(self.projector, torch.cat(h))
        q_i, q_j = self.on_views(self.predictor, torch.cat((z_i, z_j)))
        return simsiam_loss(q_i, q_j, z_i, z_j)
