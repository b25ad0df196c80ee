"""The equivariance module (paper, Sec. 2.2 and 2.3): predict where an augmentation moves the embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equimod.models.heads import mlp
from equimod.models.losses import equimod_loss
from equimod.models.settings import EquiModSettings
from equimod.pipelines.params import Standardizer


class EquiMod(nn.Module):
    """Projector g' to embeddings y, embedding of the parameters t, and predictor u: y_hat_v = u(y_x, t).

    `feature_dim`: dimension of the representations h, or of those of the layer that stand in for them;
    `standardizer` brings encoded parameters (N,P) to mean 0, std 1.
    """

    def __init__(self, feature_dim: int, standardizer: Standardizer, settings: EquiModSettings) -> None:
        super().__init__()
        projector, embedding = settings.projector or (), settings.embedding or ()
        params = len(standardizer.mean)
        dim_y, dim_t = (feature_dim, *projector)[-1], (params, *embedding)[-1]
        self.feature_dim = feature_dim
        self.standardizer = standardizer
        self.projector = mlp(feature_dim, projector, end="plain norm")
        self.embedding = mlp(params, embedding, end="norm")
        self.predictor = mlp(dim_y + dim_t, (*settings.predictor_hidden, dim_y), end="plain norm")
        self.settings = settings

    def forward(self, h_x: Tensor, h: tuple[Tensor, Tensor], t: tuple[Tensor, Tensor]) -> Tensor:
        """The equivariance loss (Eq. 4), a scalar.

        `h_x`, `h`: representations (N,F) of the images and their two views; `t`: the views' encoded parameters (N,P).
        """
        y_x, y_i, y_j = self.projector(torch.cat([h_x, *h])).chunk(3)
        yhat_i, yhat_j = self.predict(torch.cat([y_x, y_x]), torch.cat(t)).chunk(2)
        return equimod_loss(y_i, y_j, yhat_i, yhat_j, self.settings.temperature, self.settings.negatives)

    def predict(self, y_x: Tensor, t: Tensor) -> Tensor:
        """y_hat (N,D): where the augmentation with encoded parameters t (N,P) should move the embeddings y_x (N,D)."""
        yhat: Tensor = self.predictor(torch.cat([y_x, self.embedding(self.standardizer(t))], dim=1))
        return yhat

    def embed(self, h_x: Tensor, h_v: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(y_x, y_v, y_hat_v), each (N,D), of images and one view of them: what Eq. 5 and 6 compare."""
        y_x, y_v = self.projector(torch.cat([h_x, h_v])).chunk(2)
        return y_x, y_v, self.predict(y_x, t)
