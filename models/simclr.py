"""SimCLR (Chen et al., 2020) with the three-layer projector of the paper (Sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.heads import mlp
from equimod.models.losses import nt_xent
from equimod.models.method import Method
from equimod.models.settings import SimCLRSettings


class SimCLR(Method):
    """Projector g and NT-Xent on the embeddings z = g(h)."""

    def __init__(self, encoder: Encoder, settings: SimCLRSettings) -> None:
        super().__init__()
        self.projector = mlp(encoder.feature_dim, (*settings.hidden, settings.dim), end="plain norm")
        self.temperature = settings.temperature

    def forward(self, h: tuple[Tensor, Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        z_i, z_j = self.on_views(self.projector, torch.cat(h))
        return nt_xent(z_i, z_j, self.temperature)
