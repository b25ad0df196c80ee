"""E-SSL (Dangovski et al., 2022): predict by how many quarter turns a view was rotated, beside any method."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimod.models.settings import ESSLSettings

TURNS = 4


class ESSL(nn.Module):
    """A predictor of the rotation on representations of a view in all four rotations.

    Source: the authors' code for SimCLR on CIFAR-10. It rotates a third view, cropped to half the size; here it is the
    first view, scaled down to `settings.size` pixels where that is given.
    """

    def __init__(self, feature_dim: int, settings: ESSLSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((feature_dim, *settings.hidden)):
            layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.ReLU(inplace=True)]
        self.predictor = nn.Sequential(*layers, nn.Linear((feature_dim, *settings.hidden)[-1], TURNS))
        self.settings = settings

    def forward(self, represent: Callable[[Tensor], Tensor], view: Tensor) -> Tensor:
        """Cross-entropy of the predicted rotations, a scalar, of images `view` (N,3,S,S).

        `represent`: the encoder, images (4N,3,S,S) to representations (4N,F).
        """
        if self.settings.size is not None:
            view = F.interpolate(view, size=self.settings.size, mode="bilinear", antialias=True)
        turn = torch.arange(TURNS, device=view.device).repeat_interleave(len(view))
        return F.cross_entropy(self.predictor(represent(rotations(view))), turn)


def rotations(images: Tensor) -> Tensor:
    """Square images (N,3,S,S), turned by 0, 90, 180 and 270 degrees counterclockwise: (4N,3,S,S), turn by turn."""
    return torch.cat([images.rot90(turn, (2, 3)) for turn in range(TURNS)])
