"""What the drawn parameters do to pixels: batched operators on any device, and `apply`, which runs a whole policy.

Operators follow torchvision.transforms.v2.functional on float images; a factor is given per sample. Which samples an
operator touches is known on the host before the images are read, so `apply` computes nothing for the others and never
waits for the device. Images stay float between operators: nothing is rounded or truncated on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import CenterPolicy, Normalize, ViewPolicy

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def hflip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the samples whose `flip` (N,) is true. Images (N,3,H,W)."""
    return torch.where(_per_sample(flip), images.flip(-1), images)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images (N,3,H,W) in [0,1] with black: factor (N,) 0 is black, 1 the image."""
    return (images * _per_sample(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images (N,3,H,W) in [0,1] with the mean of their gray level: factor (N,) 0 is flat, 1 the image."""
    return _blend(images, _luma(images).mean((-2, -1), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images (N,3,H,W) in [0,1] with their gray level: factor (N,) 0 is gray, 1 the image."""
    return _blend(images, _luma(images), factor)


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue of images (N,3,H,W) in [0,1] by factor (N,) of the colour circle, -0.5 to 0.5 (HSV)."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant = sextant + 6 * factor.to(images.dtype)[:, None, None]
    # A channel lies below the value by the chroma times a trapezoid of its distance in hue.
    channels = [value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in ((sextant + n) % 6 for n in (5, 3, 1))]
    return torch.stack(channels, 1)


def grayscale(images: Tensor, gray: Tensor) -> Tensor:
    """Replace the samples (N,3,H,W) whose `gray` (N,) is true by their gray level in all channels."""
    return torch.where(_per_sample(gray), _luma(images), images)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur images (N,3,H,W) with sigma (N,) pixels, an odd kernel and reflected borders, a row and a column pass."""
    n, channels, height, width = images.shape
    half = kernel_size // 2
    if half >= min(height, width):
        raise ValueError(
            f"blur kernel of {kernel_size} pixels on images of {width}x{height}; give less than twice the side"
        )
    offset = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    weight = torch.exp(-0.5 * (offset / sigma.to(images.dtype)[:, None]) ** 2)
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
    padded = F.pad(images, (half, half, half, half), mode="reflect").reshape(1, n * channels, height + 2 * half, -1)
    blurred = F.conv2d(padded, weight, groups=n * channels)
    blurred = F.conv2d(blurred, weight.transpose(2, 3), groups=n * channels)
    return blurred.reshape(images.shape)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values of images (N,3,H,W) in [0,1] at or above threshold (N,)."""
    return torch.where(images >= _per_sample(threshold), 1 - images, images)


def normalize(images: Tensor, policy: Normalize) -> Tensor:
    """(images - mean) / std a channel, images (N,3,H,W) in [0,1]."""
    mean, std = (images.new_tensor(value)[:, None, None] for value in (policy.mean, policy.std))
    return (images - mean) / std


def apply(images: Tensor, params: AugmentationParams, policy: ViewPolicy) -> Tensor:
    """Carry out on cropped and resized images what was drawn for them.

    `images`: uint8 (N,3,S,S) on any device; `params`: of the same N samples, on the host.
    Returns float32 (N,3,S,S), contiguous, normalised.
    """
    return run(images, Plan.of(params, policy, images.device), policy)


def apply_center(images: Tensor, policy: CenterPolicy) -> Tensor:
    """Normalise the non-augmented images: uint8 (N,3,S,S) to contiguous float32 (N,3,S,S)."""
    return normalize(_to_float(images), policy.normalize)


@dataclass(frozen=True)
class Plan:
    """Which rows each operator touches, and their factors, on the device of the images.

    Jitter takes four rounds, since every sample has an order of its own: `rounds[k][o]` are the rows that operator o
    treats in round k, numbered as round k-1 left them (operator after operator), so that each round is one gather.
    """

    flip: Tensor  # bool (N,)
    jitter: Tensor  # int64 rows, as gray, blur and solarize
    rounds: tuple[tuple[Tensor, ...], ...]
    factors: tuple[tuple[Tensor, ...], ...]  # float32, like `rounds`
    undo: Tensor  # int64: the place of each jittered row after the last round
    gray: Tensor
    blur: Tensor
    sigma: Tensor  # float32, one a row of `blur`
    solarize: Tensor
    on: Tensor  # bool (N,), all true: the factor of an operator on the rows it was drawn for

    @classmethod
    def of(cls, params: AugmentationParams, policy: ViewPolicy, device: torch.device) -> Plan:
        """Sort the samples of `params` by what happens to them; copies to `device` do not block."""
        jitter = params.jitter.nonzero()[:, 0]
        order, factors = params.order[jitter], params.factors[jitter].float()
        rounds, round_factors = [], []
        place = torch.arange(len(jitter))  # where each jittered sample stands now
        for k in range(4):
            samples = [(order[:, k] == o).nonzero()[:, 0] for o in range(4)]
            rounds.append(tuple(place[rows].to(device, non_blocking=True) for rows in samples))
            round_factors.append(tuple(factors[r, o].to(device, non_blocking=True) for o, r in enumerate(samples)))
            place = torch.empty_like(place)
            place[torch.cat(samples)] = torch.arange(len(place))

        def rows_of(flag: Tensor) -> Tensor:
            return flag.nonzero()[:, 0].to(device, non_blocking=True)

        return cls(
            flip=params.flip.to(device, non_blocking=True),
            jitter=rows_of(params.jitter),
            rounds=tuple(rounds),
            factors=tuple(round_factors),
            undo=place.to(device, non_blocking=True),
            gray=rows_of(params.gray),
            blur=rows_of(params.blur),
            sigma=params.sigma[params.blur].float().to(device, non_blocking=True),
            solarize=rows_of(params.solarize),
            on=torch.ones(len(params), dtype=torch.bool, device=device),
        )


def run(images: Tensor, plan: Plan, policy: ViewPolicy) -> Tensor:
    """The device half of `apply`: no branch on a value of the device, fullgraph under torch.compile."""
    pixels = _to_float(hflip(images, plan.flip))
    pixels = _on_rows(pixels, plan.jitter, lambda part: _jitter(part, plan))
    pixels = _on_rows(pixels, plan.gray, lambda part: grayscale(part, plan.on[: len(part)]))
    if policy.blur is not None:
        kernel_size = policy.blur.kernel_size
        pixels = _on_rows(pixels, plan.blur, lambda part: gaussian_blur(part, plan.sigma, kernel_size))
    if policy.solarize is not None:
        threshold = plan.on * (policy.solarize.threshold / 255)
        pixels = _on_rows(pixels, plan.solarize, lambda part: solarize(part, threshold[: len(part)]))
    return normalize(pixels, policy.normalize)


def _jitter(pixels: Tensor, plan: Plan) -> Tensor:
    operators = (brightness, contrast, saturation, hue)
    for rounds, factors in zip(plan.rounds, plan.factors, strict=True):
        parts = [
            operator(pixels[rows], factor)
            for operator, rows, factor in zip(operators, rounds, factors, strict=True)
            if len(rows)
        ]
        pixels = torch.cat(parts)
    return pixels[plan.undo]


def _on_rows(pixels: Tensor, rows: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
    return pixels.index_copy(0, rows, operator(pixels[rows])) if len(rows) else pixels


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 255


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2])[:, None]


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    share = _per_sample(factor).to(images.dtype)
    return (images * share + other * (1 - share)).clamp(0, 1)


def _per_sample(value: Tensor) -> Tensor:
    return value[:, None, None, None]
