"""No invariance method: EquiMod (or E-SSL) alone, the limit of the paper's ablation of lambda."""

from __future__ import annotations

import torch
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.method import Method
from equimod.models.settings import NoneSettings


class NoMethod(Method):
    """A loss of 0 on any pair of views."""

    def __init__(self, encoder: Encoder, settings: NoneSettings) -> None:
        super().__init__()

    def forward(self, h: tuple[Tensor, Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(h)[:0].sum()  # of nothing: 0, and still part of the graph
