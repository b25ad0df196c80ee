"""No invariance method: EquiMod (or E-SSL) alone, which the paper's ablation of lambda tends to."""

from __future__ import annotations

from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.method import Method
from equimod.models.settings import NoneSettings


class NoMethod(Method):
    """A loss of 0 on any pair of views."""

    def __init__(self, encoder: Encoder, settings: NoneSettings) -> None:
        super().__init__()

    def forward(self, views: tuple[Tensor, Tensor], h: tuple[Tensor, Tensor]) -> Tensor:
        return h[0].new_zeros(())
