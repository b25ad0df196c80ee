"""Encoder, method, and what may stand beside it (EquiMod, E-SSL, online probe) as the one module that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equimod.models.barlow_twins import BarlowTwins
from equimod.models.byol import BYOL
from equimod.models.encoder import Encoder, build_encoder, resized_weights
from equimod.models.equimod import EquiMod
from equimod.models.essl import ESSL
from equimod.models.inner_layer import InnerLayer, inner_dim
from equimod.models.method import Method
from equimod.models.none import NoMethod
from equimod.models.probe import OnlineProbe
from equimod.models.settings import EncoderSettings, EquiModSettings, ESSLSettings
from equimod.models.simclr import SimCLR
from equimod.models.simsiam import SimSiam
from equimod.models.vicreg import VICReg
from equimod.models.weights import load_weights
from equimod.pipelines.params import Standardizer

METHODS: dict[str, Callable[[Encoder, Any], Method]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "barlow_twins": BarlowTwins,
    "simsiam": SimSiam,
    "vicreg": VICReg,
    "none": NoMethod,
}
"""Constructor of every method, from the encoder and the settings of that method."""


@dataclass(frozen=True)
class CachedFeatures:
    """Results for the samples of a batch that were encoded in earlier chunks (`train.grad_cache`)."""

    h: tuple[Tensor, ...]  # (M,F) each, as `SSL.encode` returns them, no gradient
    targets: tuple[Tensor, ...]  # (M,...) each, as `Method.target_forward` returns them
    rotation: Tensor  # scalar: their share of the mean of E-SSL's loss


class SSL(nn.Module):
    """L = L_invariance + lambda · L_EquiMod (paper, Sec. 2.2) + weight · L_rotation (E-SSL); what is None has no part.

    A probe learns from the same backward pass but adds nothing to the value of the loss. With `x_as_view` the
    invariance is the mean over the three pairs of x and the views.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Method,
        equimod: EquiMod | None = None,
        essl: ESSL | None = None,
        probe: OnlineProbe | None = None,
        x_as_view: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.method = method
        self.equimod = equimod
        self.essl = essl
        self.probe = probe
        self.x_as_view = x_as_view
        layer = None if equimod is None else equimod.settings.layer
        self._inner = None if layer is None else InnerLayer(encoder, layer)

    @property
    def image_sets(self) -> int:
        """How many images of each sample go through the encoder: its two views, and x where it is of use."""
        return 3 if self.equimod is not None or self.x_as_view else 2

    def forward(
        self,
        images: Tensor,
        encodings: tuple[Tensor, Tensor],
        label: Tensor,
        cached: CachedFeatures | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch, scalars: "loss" to go backward from, and detached what it is made of, before weighting:
        "invariance", "equivariance" (EquiMod), "rotation" (E-SSL). With a probe also its "probe_top1" in percent.

        `images` (image_sets · N,3,S,S): x where there are three, then the first views, then the second; `encodings`:
        the views' encoded parameters (N,P), not standardised; `label` (N,), read by the probe alone. Where `cached`
        holds the results for the first samples of the batch, images are those of the others.
        """
        h, targets = self.encode(images), self.target_forward(images)
        if cached is not None:
            h, targets = joined([cached.h, h]), joined([cached.targets, targets])
        losses = self.compare(h, targets, encodings, label)
        if self.essl is not None:
            rotation = self.rotation(images) * (len(images) / self.image_sets / len(label))
            if cached is not None:
                rotation = rotation + cached.rotation
            losses["loss"] = losses["loss"] + self.essl.settings.weight * rotation
            losses["rotation"] = rotation.detach()
        return losses

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Representations (N,F) of each of the sets in `images`, as `forward` takes them: one batch to the encoder, as
        in the official code, or with the method's `norm_per_view` one for each.

        Where EquiMod works on an earlier layer: those of the two views, then that layer's (N,G) of each of the sets.
        """
        h = self.method.on_views(self._encode, images, self.image_sets)
        return h if self._inner is None else (*h[1:], *self._inner.take().chunk(self.image_sets))

    def target_forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`Method.target_forward` of the views in `images`, as `forward` takes them."""
        return self.method.target_forward(images[-2 * len(images) // self.image_sets :])

    def compare(
        self, h: tuple[Tensor, ...], targets: tuple[Tensor, ...], encodings: tuple[Tensor, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        """The losses that are made of representations: all of `forward` but the rotations.

        `h`: as `encode` returns them, `targets`: as `Method.target_forward` does, of the whole batch.
        """
        h_i, h_j = h[-2:] if self._inner is None else h[:2]
        loss = self.method((h_i, h_j), targets)
        if self.x_as_view:
            loss = (loss + self.method((h[0], h_i), targets) + self.method((h[0], h_j), targets)) / 3
        report = {"invariance": loss.detach()}
        if self.equimod is not None:
            of_x, of_i, of_j = h[-3:]
            equivariance = self.equimod(of_x, (of_i, of_j), encodings)
            loss = loss + self.equimod.settings.weight * equivariance
            report["equivariance"] = equivariance.detach()
        if self.probe is not None:
            of_probe, report["probe_top1"] = self.probe((h_i, h_j), label)
            loss = loss + (of_probe - of_probe.detach())
        return {"loss": loss, **report}

    def rotation(self, images: Tensor) -> Tensor:
        """E-SSL's loss, a mean over the samples, of the first views in `images`, as `forward` takes them."""
        assert self.essl is not None
        loss: Tensor = self.essl(self._encode, images.chunk(self.image_sets)[-2])
        return loss

    def before_step(self, progress: float) -> None:
        """To be called before every training step; `progress` runs from 0 to 1 over the training."""
        self.method.before_step(self.encoder, progress)

    def _encode(self, images: Tensor) -> Tensor:
        """Representations (N,F) of images (N,3,S,S), brought to the layout of the weights."""
        kernel = next((p for p in self.encoder.parameters() if p.ndim == 4), None)
        if kernel is not None and kernel.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        h: Tensor = self.encoder(images)
        return h


def joined(chunks: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Tensors of several chunks of a batch, in the same order in each chunk, as those of the whole."""
    return tuple(map(torch.cat, zip(*chunks, strict=True)))


def build_ssl(
    method: str,
    encoder: EncoderSettings,
    method_settings: Any,
    equimod: EquiModSettings | None = None,
    standardizer: Standardizer | None = None,
    essl: ESSLSettings | None = None,
    probe_classes: int | None = None,
    image_size: int = 224,
    weights: Mapping[str, Tensor] | None = None,
    x_as_view: bool = False,
    norm_per_view: bool = False,
) -> SSL:
    """The module to train: `method` (a key of METHODS, with its settings), with EquiMod and E-SSL where their settings
    are given, and with an online probe where the number of classes is. `image_size`: side of the images in pixels.
    `weights`: by name, those that the encoder starts from. `x_as_view`: see `SSL`, `norm_per_view`: see `Method`.

    Initialised from torch's global generator. ValueError for an unknown method and for EquiMod without a standardizer.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose from {', '.join(METHODS)}")
    trunk = build_encoder(encoder, image_size)
    if weights is not None:
        load_weights(trunk, resized_weights(encoder, trunk, weights), str(encoder.weights))
    module = None
    if equimod is not None:
        if standardizer is None:
            raise ValueError("EquiMod needs the statistics of its parameters: give Standardizer.fit(policy, sizes)")
        layer = equimod.layer
        dim = trunk.feature_dim if layer is None else inner_dim(trunk, layer, image_size)
        module = EquiMod(dim, standardizer, equimod)
    behind = METHODS[method](trunk, method_settings)
    behind.norm_per_view = norm_per_view
    return SSL(
        trunk,
        behind,
        module,
        None if essl is None else ESSL(trunk.feature_dim, essl),
        None if probe_classes is None else OnlineProbe(trunk.feature_dim, probe_classes),
        x_as_view,
    )
