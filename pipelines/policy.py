"""What may be drawn: one frozen dataclass an operator, the policy of a view, the policy of a data set.

Nothing here imports torch, so that ``--help`` and the configuration stay instant.
Numbers are those of the paper's settings and, where it refers to others, of the methods' own papers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

OPERATORS = ("flip", "jitter", "gray", "blur", "solarize")
"""The operators after the crop, in order of application: fields of `ViewPolicy`, flags of the drawn parameters.

The random numbers and the encoding of a view follow this order, so a change of it changes every run.
"""
AFTER_JITTER = OPERATORS[OPERATORS.index("jitter") + 1 :]

Interpolation = Literal["bicubic", "bilinear"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


def _check_probability(owner: object, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{type(owner).__name__}: p={p} is no probability; give a number from 0 to 1")


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop of a random area share and aspect ratio, resized to ``size`` pixels square (torchvision's distribution)."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"RandomResizedCrop: size={self.size} pixels; give 1 or more")
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"RandomResizedCrop: scale={self.scale}; give 0 < smallest <= largest <= 1")
        if not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"RandomResizedCrop: ratio={self.ratio}; give 0 < smallest <= largest")


@dataclass(frozen=True)
class HorizontalFlip:
    p: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self, self.p)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation factors from U(max(0, 1-s), 1+s), hue from U(-s, s), in a random order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 0.8

    def __post_init__(self) -> None:
        _check_probability(self, self.p)
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError(f"{self}: strengths must be 0 or more, hue at most 0.5 of the colour circle")


@dataclass(frozen=True)
class Grayscale:
    p: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self, self.p)


@dataclass(frozen=True)
class GaussianBlur:
    """Blur of an odd ``kernel_size`` in pixels, sigma in pixels drawn from U(*sigma)."""

    kernel_size: int
    p: float
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        _check_probability(self, self.p)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"GaussianBlur: kernel_size={self.kernel_size}; give an odd number of pixels")
        if not 0.0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"GaussianBlur: sigma={self.sigma}; give 0 < smallest <= largest")

    def scaled(self, size: int, before: int) -> GaussianBlur:
        """The same blur of an image of `size` pixels that had `before`. Its kernel reaches no less far."""
        low, high = (sigma * size / before for sigma in self.sigma)
        radius = -(-(self.kernel_size // 2) * size // before)
        return replace(self, kernel_size=2 * radius + 1, sigma=(low, high))


@dataclass(frozen=True)
class Solarize:
    """Inversion of every channel value at or above ``threshold`` (of 255)."""

    p: float
    threshold: int = 128

    def __post_init__(self) -> None:
        _check_probability(self, self.p)


@dataclass(frozen=True)
class Normalize:
    """What is taken off each colour channel of values in [0, 1], and what it is divided by then."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not min(self.std) > 0:
            raise ValueError(f"Normalize: std={self.std}; give numbers above 0")


@dataclass(frozen=True)
class CenterPolicy:
    """The non-augmented image: ``Resize(resize)`` and ``CenterCrop(size)`` as torchvision places them, normalised.

    An image that is ``size`` square after the resize is taken whole: CIFAR-10's x is the image itself.
    The official code resamples x of ImageNet bilinearly in training and bicubically in evaluation; here both
    are bicubic, so that x in training is the image that evaluation sees.
    """

    size: int
    resize: int
    normalize: Normalize
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(f"CenterPolicy: size={self.size}, resize={self.resize}; give 1 <= size <= resize")

    def at(self, size: int) -> CenterPolicy:
        """The same part of the image in `size` pixels, as far as the resize comes out in whole ones."""
        return replace(self, size=size, resize=max(size, round(self.resize * size / self.size)))


@dataclass(frozen=True)
class ViewPolicy:
    """What may happen to one view, in the order of application. ``None``: the operator is not part of the policy.

    An operator that is part of the policy but drawn with probability 0 still has its place in the
    encoding of the parameters, so that two views of one method share a layout (paper, A.1). The crop of x, as
    a ``CenterPolicy``, is the crop that changes nothing: the box that x shows, to the next whole pixels.
    """

    crop: RandomResizedCrop | CenterPolicy
    normalize: Normalize
    flip: HorizontalFlip | None = HorizontalFlip()
    jitter: ColorJitter | None = None
    gray: Grayscale | None = None
    blur: GaussianBlur | None = None
    solarize: Solarize | None = None

    def at(self, size: int) -> ViewPolicy:
        """The same view in `size` pixels."""
        crop, blur = self.crop, self.blur
        return replace(
            self,
            crop=crop.at(size) if isinstance(crop, CenterPolicy) else replace(crop, size=size),
            blur=blur and blur.scaled(size, crop.size),
        )


@dataclass(frozen=True)
class AugmentationPolicy:
    """The non-augmented image and the views of a sample; all have the same size in pixels."""

    x: CenterPolicy
    views: tuple[ViewPolicy, ...]

    def __post_init__(self) -> None:
        sizes = {self.x.size, *(view.crop.size for view in self.views)}
        if len(sizes) != 1:
            raise ValueError(f"AugmentationPolicy: x and views must share one size, not {sorted(sizes)} pixels")

    @property
    def size(self) -> int:
        """Side of every image in pixels."""
        return self.x.size

    def at(self, size: int) -> AugmentationPolicy:
        """The same images in `size` pixels."""
        return AugmentationPolicy(self.x.at(size), tuple(view.at(size) for view in self.views))

    def normalized(self, normalize: Normalize) -> AugmentationPolicy:
        """The same images with another mean and standard deviation taken off."""
        views = tuple(replace(view, normalize=normalize) for view in self.views)
        return AugmentationPolicy(replace(self.x, normalize=normalize), views)


def _policy(
    size: int,
    resize: int,
    min_scale: float,
    normalize: Normalize,
    jitter: ColorJitter,
    blur: tuple[GaussianBlur | None, GaussianBlur | None] = (None, None),
    solarize: tuple[Solarize | None, Solarize | None] = (None, None),
) -> AugmentationPolicy:
    view = ViewPolicy(RandomResizedCrop(size, (min_scale, 1.0)), normalize, jitter=jitter, gray=Grayscale())
    views = tuple(replace(view, blur=b, solarize=s) for b, s in zip(blur, solarize, strict=True))
    return AugmentationPolicy(CenterPolicy(size, resize, normalize), views)


def one_by_one(policy: AugmentationPolicy) -> dict[str, ViewPolicy]:
    """A view for each operator that is part of `policy`: this one always applied, all others never (paper, Sec. 3.2.2).

    Strengths are those of the first view. By name: crop, flip, jitter, gray, blur, solarize, and identity, which
    applies none.
    """
    first = policy.views[0]
    drawn = {name: getattr(first, name) for name in OPERATORS}
    known = {name: operator for name, operator in drawn.items() if operator is not None}
    nothing = replace(first, crop=policy.x, **{name: replace(operator, p=0.0) for name, operator in known.items()})
    alone = {name: replace(nothing, **{name: replace(operator, p=1.0)}) for name, operator in known.items()}
    return {"crop": replace(nothing, crop=first.crop), **alone, "identity": nothing}


_IMAGENET = Normalize(IMAGENET_MEAN, IMAGENET_STD)
_CIFAR10 = Normalize(CIFAR10_MEAN, CIFAR10_STD)
_SHAPES = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
_SIMCLR_JITTER = ColorJitter(0.8, 0.8, 0.8, 0.2)  # Chen et al., 2020, appendix A: strength 1
_SIMCLR_JITTER_CIFAR10 = ColorJitter(0.4, 0.4, 0.4, 0.1)  # appendix B.9: half of it
_BYOL_JITTER = ColorJitter(0.4, 0.4, 0.2, 0.1)  # Grill et al., 2020, appendix B, as all of BYOL's here
_BYOL_SOLARIZE = (Solarize(0.0), Solarize(0.2))

# As in the code of EquiMod's authors: crops of .08 of the image or more on ImageNet, of .2 on CIFAR-10; a blur's kernel
# has a tenth of the image; on CIFAR-10 only BYOL blurs, and only BYOL solarizes.
POLICIES: dict[str, AugmentationPolicy] = {
    "simclr_imagenet": _policy(224, 256, 0.08, _IMAGENET, _SIMCLR_JITTER, blur=(GaussianBlur(23, 0.5),) * 2),
    "simclr_cifar10": _policy(32, 32, 0.2, _CIFAR10, _SIMCLR_JITTER_CIFAR10),
    # The embedded data set: colours as CIFAR-10's, a blur of a tenth of the image as SimCLR asks.
    "simclr_shapes": _policy(64, 64, 0.2, _SHAPES, _SIMCLR_JITTER_CIFAR10, blur=(GaussianBlur(7, 0.5),) * 2),
    "byol_imagenet": _policy(
        224,
        256,
        0.08,
        _IMAGENET,
        _BYOL_JITTER,
        blur=(GaussianBlur(23, 1.0), GaussianBlur(23, 0.1)),
        solarize=_BYOL_SOLARIZE,
    ),
    "byol_cifar10": _policy(
        32,
        32,
        0.2,
        _CIFAR10,
        _BYOL_JITTER,
        blur=(GaussianBlur(3, 1.0), GaussianBlur(3, 0.1)),
        solarize=_BYOL_SOLARIZE,
    ),
    "barlow_twins_cifar10": _policy(32, 32, 0.2, _CIFAR10, _BYOL_JITTER),
}


OPERATOR_DEFAULTS: dict[str, HorizontalFlip | ColorJitter | Grayscale | GaussianBlur | Solarize] = {
    "flip": HorizontalFlip(),
    "jitter": _SIMCLR_JITTER,
    "gray": Grayscale(),
    "blur": GaussianBlur(23, 0.5),
    "solarize": Solarize(0.2),
}
"""Each operator as SimCLR, or for solarize BYOL, has it for images of 224 pixels: the start of one that is added."""


def evaluation_policy(policy: AugmentationPolicy, dataset: str | None) -> AugmentationPolicy:
    """For classifiers on an encoder trained with `policy`: the view to train on (crop and flip), and x to test on.

    x is that of the training, but for CIFAR-10, of which 32 of 36 pixels are tested on.
    """
    x = replace(policy.x, resize=round(policy.size * 36 / 32)) if dataset == "cifar10" else policy.x
    return AugmentationPolicy(x, (ViewPolicy(RandomResizedCrop(policy.size), x.normalize),))
