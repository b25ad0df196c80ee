"""Settings of the models: frozen dataclasses without torch, so that the configuration and ``--help`` stay instant.

The defaults are the paper's for CIFAR-10 (Sec. 2.3, 3.1); recipes carry what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arch = Literal["resnet10", "resnet18", "resnet34", "resnet50"]


@dataclass(frozen=True)
class EncoderSettings:
    arch: Arch = "resnet18"
    """Depth of the torchvision ResNet trunk; resnet10 has one basic block a stage, for small machines."""
    stem: Literal["imagenet", "cifar"] = "cifar"
    """imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no max-pool."""
    width: int = 64
    """Channels of the first stage; 64 is the published network."""


@dataclass(frozen=True)
class SimCLRSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the projector's hidden layers."""
    dim: int = 128
    """Dimension of the embedding z."""
    temperature: float = 0.5
    """Temperature of NT-Xent."""


@dataclass(frozen=True)
class BYOLSettings:
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    dim: int = 256
    """Dimension of the embedding z."""
    momentum: float = 0.996
    """Momentum of the target network at the start; it rises to 1 along a cosine."""


@dataclass(frozen=True)
class BarlowTwinsSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the projector's hidden layers; the paper leaves them open."""
    dim: int = 128
    """Dimension of the embedding z."""
    lambd: float = 0.005
    """Weight of the redundancy between dimensions."""


@dataclass(frozen=True)
class SimSiamSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the projector's hidden layers."""
    dim: int = 2048
    """Dimension of the embedding z."""
    bottleneck: int = 512
    """Width of the predictor's hidden layer."""


@dataclass(frozen=True)
class VICRegSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the expander's hidden layers."""
    dim: int = 2048
    """Dimension of the embedding z."""
    invariance: float = 25.0
    """Weight of the distance between the views."""
    variance: float = 25.0
    """Weight of the hinge on the standard deviation of every dimension."""
    covariance: float = 1.0
    """Weight of the covariances between dimensions."""


@dataclass(frozen=True)
class NoneSettings:
    """Nothing to set."""


@dataclass(frozen=True)
class MethodSettings:
    """Every method's settings under the method's name."""

    simclr: SimCLRSettings = SimCLRSettings()
    byol: BYOLSettings = BYOLSettings()
    barlow_twins: BarlowTwinsSettings = BarlowTwinsSettings()
    simsiam: SimSiamSettings = SimSiamSettings()
    vicreg: VICRegSettings = VICRegSettings()
    none: NoneSettings = NoneSettings()


@dataclass(frozen=True)
class EquiModSettings:
    weight: float = 1.0
    """lambda: weight of the equivariance loss beside the method's."""
    temperature: float = 0.2
    """Temperature tau' of the equivariance loss (Eq. 4)."""
    negatives: Literal["paper", "official"] = "paper"
    """paper: Eq. 4; official: NT-Xent over all embeddings and predictions, as in the authors' code."""
    projector: tuple[int, ...] | None = (2048, 2048, 128)
    """Widths of the layers of the equivariant projector g', the last is the dimension of y; none: y is h (Table 2a)."""
    predictor_hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of the predictor u (Table 2b)."""
    embedding: tuple[int, ...] | None = (128,)
    """Widths of the layers that embed the parameters t; none: t enters u as it is (Table 2c)."""


@dataclass(frozen=True)
class ESSLSettings:
    weight: float = 0.4
    """Weight of the rotation loss beside the others."""
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the hidden layers of the predictor of the rotation."""
    size: int | None = None
    """Side in pixels that the rotated views are scaled to, to save time (16 in E-SSL's code for CIFAR-10); none: as
    they are."""
