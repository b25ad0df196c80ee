"""Encoder, method and optional EquiMod as the one module that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equimod.models.barlow_twins import BarlowTwins
from equimod.models.byol import BYOL
from equimod.models.encoder import Encoder
from equimod.models.equimod import EquiMod
from equimod.models.method import Method
from equimod.models.settings import EncoderSettings, EquiModSettings
from equimod.models.simclr import SimCLR
from equimod.models.simsiam import SimSiam
from equimod.models.vicreg import VICReg
from equimod.pipelines.params import Standardizer

METHODS: dict[str, Callable[[Encoder, Any], Method]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "barlow_twins": BarlowTwins,
    "simsiam": SimSiam,
    "vicreg": VICReg,
}
"""Constructor of every method, from the encoder and the settings of that method."""


class SSL(nn.Module):
    """L = L_invariance + lambda · L_EquiMod (paper, Sec. 2.2), or L_invariance alone where `equimod` is None."""

    def __init__(self, encoder: Encoder, method: Method, equimod: EquiMod | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.method = method
        self.equimod = equimod

    def forward(
        self, x: Tensor | None, views: tuple[Tensor, Tensor], encodings: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Losses of a batch, scalars: "loss" to go backward from, and detached "invariance" and "equivariance".

        `x`: images (N,3,S,S), needed by EquiMod only and left alone without it; `views`: two augmented (N,3,S,S);
        `encodings`: the views' encoded parameters (N,P), not standardised. ValueError for EquiMod without x.
        """
        if self.equimod is None:
            h_i, h_j = self._represent(*views)
            invariance = self.method(views, (h_i, h_j))
            return {"loss": invariance, "invariance": invariance.detach()}
        if x is None:
            raise ValueError("EquiMod needs the non-augmented images x: build the pipeline with with_x=True")
        h_x, h_i, h_j = self._represent(x, *views)
        invariance = self.method(views, (h_i, h_j))
        equivariance = self.equimod(h_x, (h_i, h_j), encodings)
        return {
            "loss": invariance + self.equimod.settings.weight * equivariance,
            "invariance": invariance.detach(),
            "equivariance": equivariance.detach(),
        }

    def before_step(self, progress: float) -> None:
        """To be called before every training step; `progress` runs from 0 to 1 over the training."""
        self.method.before_step(self.encoder, progress)

    def _represent(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Representations of several batches of images, through the encoder as one batch (as the official code)."""
        batch = torch.cat(images)
        if self.encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last):
            batch = batch.contiguous(memory_format=torch.channels_last)
        h: Tensor = self.encoder(batch)
        return h.chunk(len(images))


def build_ssl(
    method: str,
    encoder: EncoderSettings,
    method_settings: Any,
    equimod: EquiModSettings | None,
    standardizer: Standardizer | None,
) -> SSL:
    """The module to train: `method` (a key of METHODS, with its settings), with EquiMod where its settings are given.

    Initialised from torch's global generator. ValueError for an unknown method and for EquiMod without a standardizer.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose from {', '.join(METHODS)}")
    trunk = Encoder(encoder)
    module = None
    if equimod is not None:
        if standardizer is None:
            raise ValueError("EquiMod needs the statistics of its parameters: give Standardizer.fit(policy, sizes)")
        module = EquiMod(trunk.feature_dim, standardizer, equimod)
    return SSL(trunk, METHODS[method](trunk, method_settings), module)
