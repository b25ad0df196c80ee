"""VICReg (Bardes et al., 2022): views agree, every dimension varies, no two vary together."""

from __future__ import annotations

import torch
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.heads import mlp
from equimod.models.losses import vicreg_loss
from equimod.models.method import Method
from equimod.models.settings import VICRegSettings


class VICReg(Method):
    """Expander g and the three terms on the embeddings z = g(h)."""

    def __init__(self, encoder: Encoder, settings: VICRegSettings) -> None:
        super().__init__()
        self.projector = mlp(encoder.feature_dim, (*settings.hidden, settings.dim), end="linear")
        self.weights = (settings.invariance, settings.variance, settings.covariance)

    def forward(self, h: tuple[Tensor, Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        z_i, z_j = self.on_views(self.projector, torch.cat(h))
        return vicreg_loss(z_i, z_j, *self.weights)
