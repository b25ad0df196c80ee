"""Barlow Twins (Zbontar et al., 2021): the embeddings of two views agree, and their dimensions are decorrelated."""

from __future__ import annotations

import torch
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.heads import mlp
from equimod.models.losses import barlow_twins_loss
from equimod.models.method import Method
from equimod.models.settings import BarlowTwinsSettings


class BarlowTwins(Method):
    """Projector g and the cross-correlation of the embeddings z = g(h)."""

    def __init__(self, encoder: Encoder, settings: BarlowTwinsSettings) -> None:
        super().__init__()
        self.projector = mlp(encoder.feature_dim, (*settings.hidden, settings.dim), end="linear")
        self.lambd = settings.lambd

    def forward(self, h: tuple[Tensor, Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        z_i, z_j = self.on_views(self.projector, torch.cat(h))
        return barlow_twins_loss(z_i, z_j, self.lambd)
