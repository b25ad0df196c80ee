"""Settings of the models: frozen dataclasses without torch, so that the configuration and ``--help`` stay instant.

The defaults are the paper's for CIFAR-10 (Sec. 2.3, 3.1); recipes carry what differs. Each class checks its values when
it is made, and names the key that a recipe and the command line have for it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

from equimod.pipelines.errors import UsageError

LARGEST = 1e38  # that float32 has room for


class ConfigError(UsageError):
    """A configuration that cannot be run: the message gives the key, its value and the remedy, in one line."""


def require_at_least(settings: object, section: str, **minimum: float) -> None:
    """ConfigError for a field of `settings` below its minimum; None passes. `section`: their key, such as "simclr."."""
    for name, least in minimum.items():
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{section}{name}={value} is too small; give {least} or more")
        _require_float32(value or 0, f"{section}{name}")


def require_positive(settings: object, section: str, *names: str) -> None:
    """ConfigError for a field of `settings` that is not above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ConfigError(f"{section}{name}={getattr(settings, name)} must be positive")
        _require_float32(getattr(settings, name), f"{section}{name}")


def _require_float32(value: float, name: str) -> None:
    if value > LARGEST:
        raise ConfigError(f"{name}={value} is too large; give {LARGEST} or less")


def require_widths(settings: object, section: str, *names: str) -> None:
    """ConfigError for a field of `settings` that holds the width of a layer below 1; None and () pass."""
    for name in names:
        widths = getattr(settings, name)
        if widths and min(widths) < 1:
            raise ConfigError(f"{section}{name}={widths} holds a width below 1; give widths of 1 or more")


Arch = Literal["resnet10", "resnet18", "resnet34", "resnet50"]
RESNETS: tuple[str, ...] = get_args(Arch)
OF_TIMM = "timm:"


@dataclass(frozen=True)
class EncoderSettings:
    arch: str = "resnet18"
    """resnet10 (one basic block a stage), resnet18, resnet34 or resnet50, with torchvision's key names; or a model of
    timm by its name there, such as vit_small_patch16_224 or convnext_tiny (extra timm; timm:resnet50 for a name that
    is ours too)."""
    stem: Literal["imagenet", "cifar"] | None = None
    """Of our ResNets. imagenet: 7x7 stride 2 and max-pool; cifar, the default: 3x3 stride 1, no max-pool."""
    width: int | None = None
    """Channels of the first stage of our ResNets; 64, the default, is the published network."""
    freeze_patch_embed: bool = False
    """Leave the patch projection of a vision transformer as it was drawn, against instability (MoCo v3)."""

    weights: str | None = None
    """Weights to start from: a file, safetensors or a .pth of torchvision or timm, or by name where its cache has them:
    torchvision:resnet50, timm:resnet50.a1_in1k. A classifier among them is left out. A run that goes on needs none."""
    weights_sha256: str | None = None
    """SHA-256 that the file of weights must have; none: any, and the run keeps the one it had."""

    def __post_init__(self) -> None:
        if self.weights_sha256 is not None and self.weights is None:
            raise ConfigError("encoder.weights_sha256 has no effect without encoder.weights; leave it out")
        if self.timm_name is None:
            # The frozen form of a default that depends on another setting.
            object.__setattr__(self, "stem", self.stem or "cifar")
            object.__setattr__(self, "width", 64 if self.width is None else self.width)
            require_at_least(self, "encoder.", width=8)
            if self.freeze_patch_embed:
                raise ConfigError(f"encoder.freeze_patch_embed has no effect on {self.arch}; leave it out")
        for name in ("stem", "width") if self.timm_name else ():
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"encoder.{name}={getattr(self, name)} is for {', '.join(RESNETS)} alone, and encoder.arch is "
                    f"{self.arch}; leave it out"
                )

    @property
    def timm_name(self) -> str | None:
        """What timm calls the architecture; None for a ResNet of our own."""
        return None if self.arch in RESNETS else self.arch.removeprefix(OF_TIMM)

    @property
    def title(self) -> str:
        """The architecture with its width, for people."""
        return self.arch if self.width is None else f"{self.arch} width {self.width}"

    @property
    def stride(self) -> int:
        """Pixels of an image for each of the last feature map of our ResNets."""
        return 32 if self.stem == "imagenet" else 8


@dataclass(frozen=True)
class SimCLRSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the projector's hidden layers."""
    dim: int = 128
    """Dimension of the embedding z."""
    temperature: float = 0.5
    """Temperature of NT-Xent."""

    def __post_init__(self) -> None:
        require_at_least(self, "simclr.", dim=1)
        require_widths(self, "simclr.", "hidden")
        require_positive(self, "simclr.", "temperature")


@dataclass(frozen=True)
class BYOLSettings:
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    dim: int = 256
    """Dimension of the embedding z."""
    momentum: float = 0.996
    """Momentum of the target network at the start; it rises to 1 along a cosine."""
    bias: bool = False
    """Give the last layers of projector and predictor a bias, as the code of EquiMod's authors does."""

    def __post_init__(self) -> None:
        require_at_least(self, "byol.", hidden=1, dim=1, momentum=0)
        if self.momentum > 1:
            raise ConfigError(f"byol.momentum={self.momentum} must lie in [0, 1]")


@dataclass(frozen=True)
class BarlowTwinsSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the projector's hidden layers. The EquiMod paper has none; the method's authors take 8192."""
    dim: int = 128
    """Dimension of the embedding z."""
    lambd: float = 0.005
    """Weight of the redundancy between dimensions."""

    def __post_init__(self) -> None:
        require_at_least(self, "barlow_twins.", dim=1, lambd=0)
        require_widths(self, "barlow_twins.", "hidden")


@dataclass(frozen=True)
class SimSiamSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the projector's hidden layers."""
    dim: int = 2048
    """Dimension of the embedding z."""
    bottleneck: int = 512
    """Width of the predictor's hidden layer."""
    bias: bool = False
    """Give the last layer of the predictor a bias, as SimSiam's authors do."""

    def __post_init__(self) -> None:
        require_at_least(self, "simsiam.", dim=1, bottleneck=1)
        require_widths(self, "simsiam.", "hidden")


@dataclass(frozen=True)
class VICRegSettings:
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the expander's hidden layers; the method's authors take 8192 and 8192, and as dim."""
    dim: int = 2048
    """Dimension of the embedding z."""
    invariance: float = 25.0
    """Weight of the distance between the views."""
    variance: float = 25.0
    """Weight of the hinge on the standard deviation of every dimension."""
    covariance: float = 1.0
    """Weight of the covariances between dimensions."""

    def __post_init__(self) -> None:
        require_at_least(self, "vicreg.", dim=1, invariance=0, variance=0, covariance=0)
        require_widths(self, "vicreg.", "hidden")


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


METHOD_NAMES = tuple(field.name for field in fields(MethodSettings))
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[METHOD_NAMES]  # for the command line, which offers them


@dataclass(frozen=True)
class EquiModSettings:
    weight: float = 1.0
    """lambda: weight of the equivariance loss beside the method's."""
    temperature: float = 0.2
    """Temperature tau' of the equivariance loss (Eq. 4)."""
    negatives: Literal["paper", "siblings", "official"] = "paper"
    """paper: Eq. 4; siblings: with the other view of the same image as a negative too (Sec. 2.2); official: NT-Xent of
    all embeddings and predictions, as in the authors' code."""
    layer: str | None = None
    """Layer of the encoder whose output, averaged over its places, stands in for h here: layer3 of a ResNet, blocks.5
    of a vision transformer (SER, Lee et al., 2026); none: h, as in the paper."""
    projector: tuple[int, ...] | None = (2048, 2048, 128)
    """Widths of the layers of the equivariant projector g', the last is the dimension of y; none: y is h (Table 2a)."""
    predictor_hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of the predictor u (Table 2b)."""
    embedding: tuple[int, ...] | None = (128,)
    """Widths of the layers that embed the parameters t; none: t enters u as it is (Table 2c)."""

    def __post_init__(self) -> None:
        require_at_least(self, "equivariance.", weight=0)
        require_positive(self, "equivariance.", "temperature")
        require_widths(self, "equivariance.", "projector", "predictor_hidden", "embedding")
        for name in ("projector", "embedding"):
            if getattr(self, name) == ():
                raise ConfigError(f"equivariance.{name}=() is empty; give widths, or None to do without")


@dataclass(frozen=True)
class ESSLSettings:
    weight: float = 0.4
    """Weight of the rotation loss beside the others."""
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the hidden layers of the predictor of the rotation."""
    size: int | None = None
    """Side in pixels that the rotated views are scaled to, to save time (16 in E-SSL's code for CIFAR-10); none: as
    they are."""

    def __post_init__(self) -> None:
        require_at_least(self, "rotation.", weight=0, size=8)
        require_widths(self, "rotation.", "hidden")
