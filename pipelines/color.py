"""The colour operators on planes, and the grouping of a batch by the operators that its samples need.

Every colour operator but hue is, per sample, an affine map of the pixels with a clamp, so jitter is three of these with
hue at one of four places among them. `group_samples` sorts the samples by that place: all samples of a group then go
through the same computation and differ in numbers alone. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import AFTER_JITTER

Planes = Sequence[Tensor]
"""Red, green and blue of the same samples, (N,H,W) each."""

LUMA = (0.2989, 0.587, 0.114)
"""torchvision's weights of red, green and blue."""
_IDENTITY = (1.0, 0.0, 0.0)
NO_JITTER = 4
"""Behind the places that hue can have."""


def luma(planes: Planes) -> Tensor:
    """Gray level (N,H,W)."""
    red, green, blue = planes
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def invert(plane: Tensor, threshold: Tensor | float) -> Tensor:
    """The values in [0,1] that are at or above `threshold`, inverted; the others as they are."""
    return torch.where(plane >= threshold, 1 - plane, plane)


def mean(plane: Tensor) -> Tensor:
    """Mean of each sample: (N,H,W) to (N,). Row by row: the same to the bit whatever N is and however many threads."""
    return plane.mean(-1).mean(-1)


def affine(planes: Planes, table: Tensor) -> list[Tensor]:
    """Brightness, contrast or saturation, each sample its own, in [0,1].

    `table` (N,3): gain, share of the gray level, share of its mean.
    """
    gray = luma(planes)
    level = mean(gray)
    gain, of_gray, of_level = _broadcast(table, gray).unbind(1)
    other = gray.mul_(of_gray).add_(of_level * _broadcast(level, gray))
    return [(plane * gain).add_(other).clamp_(0, 1) for plane in planes]


def rotate_hue(planes: Planes, turns: Tensor) -> list[Tensor]:
    """Turn the hue (HSV) of planes in [0,1]; `turns` (N,3) as `hue_turns` gives them.

    Without a division: `angle` is the hue's distance from red times the chroma. A channel lies at the smallest
    value plus the chroma times a trapezoid of the distance from its own hue.
    """
    red, green, blue = planes
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - low
    # The distance from red is (green + blue - red + high - 2 low) / chroma in all six sextants.
    angle = (green + blue).sub_(red).add_(high).sub_(low, alpha=2)
    angle = torch.copysign(angle, green - blue)
    bottom = low - chroma
    away = [torch.addcmul(angle, chroma, of_channel) for of_channel in _broadcast(turns, angle).unbind(1)]
    return [a.abs_().sub_(chroma, alpha=3).abs_().add_(bottom).clamp_(low, high) for a in away]


def jittered(planes: Planes, place: int, tables: Tensor) -> Planes:
    """Three affine operators and hue, which comes behind `place` of them. `tables` (N,4,3) as in OperatorGroup."""
    *of_affine, turns = tables.unbind(1)
    for table in of_affine[:place]:
        planes = affine(planes, table)
    planes = rotate_hue(planes, turns)
    for table in of_affine[place:]:
        planes = affine(planes, table)
    return planes


def _broadcast(value: Tensor, plane: Tensor) -> Tensor:
    """Numbers of each sample (N,...), to be combined with a plane (N,H,W) or (N,H·W)."""
    return value[(..., *(None,) * (plane.ndim - 1))]


def hue_turns(factor: Tensor) -> Tensor:
    """By how many sextants each channel's own hue is away after a turn by factor (N,) of the circle: (N,3) in [-3,3).

    In that range the sum with an angle of -3 to 3 stays within one turn, so that `rotate_hue` needs no remainder.
    """
    own = 2 * torch.arange(3, dtype=factor.dtype, device=factor.device)
    return (6 * factor[:, None] - own + 3) % 6 - 3


def gaussian_kernels(sigma: Tensor, kernel_size: int) -> Tensor:
    """Weights (N, kernel_size) of Gaussians of sigma (N,) pixels."""
    half = kernel_size // 2
    offset = torch.arange(-half, half + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    return weight / weight.sum(1, keepdim=True)


@dataclass(frozen=True)
class OperatorGroup:
    """Samples that share the place of hue in their jitter, with the parameters of their operators, on the device.

    `gray`, `blur` and `solarize` (int64) number the samples within the group.
    """

    place: int | None  # how many affine operators come before hue; None: no jitter
    rows: Tensor  # int64 (n,): the samples' places in the batch
    flipped: int  # the first so many are flipped, and no others
    jitter: Tensor  # (n,4,3): a table for each affine operator, in order of application, and the turns of hue
    gray: Tensor
    blur: Tensor
    sigma: Tensor  # one a sample of `blur`
    solarize: Tensor


def group_samples(
    params: AugmentationParams, device: torch.device, dtype: torch.dtype, most: int
) -> list[OperatorGroup]:
    """The samples of `params` in groups of at most `most`. Copies to `device` do not block.

    `dtype` is that of tables and sigma.
    """
    jitter, place = jitter_tables(params), place_of_hue(params)

    def move(value: Tensor) -> Tensor:
        return value.to(device, non_blocking=True)

    found = []
    for where in range(NO_JITTER + 1):
        samples = (place == where).nonzero()[:, 0]
        for some in samples.split(most) if len(samples) else ():
            rows = torch.cat([some[params.flip[some]], some[~params.flip[some]]])
            chosen = params[rows]
            flags = {name: getattr(chosen, name) for name in AFTER_JITTER}
            numbers = {name: move(flag.nonzero()[:, 0]) for name, flag in flags.items()}
            group = OperatorGroup(
                place=None if where == NO_JITTER else where,
                rows=move(rows),
                flipped=int(chosen.flip.sum()),
                jitter=move(jitter[rows].to(dtype)),
                sigma=move(chosen.sigma[chosen.blur].to(dtype)),
                **numbers,
            )
            found.append(group)
    return found


def place_of_hue(params: AugmentationParams) -> Tensor:
    """How many affine operators come before hue in each sample's jitter, or NO_JITTER: int64 (N,)."""
    return torch.where(params.jitter, (params.order == 3).int().argmax(1), NO_JITTER)


def jitter_tables(params: AugmentationParams) -> Tensor:
    """`OperatorGroup.jitter` of all samples, (N,4,3)."""
    kinds = params.order[params.order != 3].view(-1, 3)
    factor = params.factors.gather(1, kinds)[..., None]
    nothing = torch.tensor(_IDENTITY, dtype=factor.dtype)
    other = torch.stack([torch.zeros_like(kinds), kinds == 2, kinds == 1], -1)
    affine_ = nothing * factor + (1 - factor) * other
    return torch.cat([affine_, hue_turns(params.factors[:, 3])[:, None]], 1)


def reject_kernel(kernel_size: int, height: int, width: int) -> None:
    """ValueError for a kernel of a blur that reaches further than the reflection of an image of this size."""
    if kernel_size // 2 >= min(height, width):
        raise ValueError(
            f"blur kernel of {kernel_size} pixels on images of {width}x{height}; give less than twice the side"
        )
