"""The colour operators on planes, and the grouping of a batch by the operators that its samples need.

Every colour operator but hue is, per sample, an affine map of the pixels with a clamp, so jitter is three of these with
hue at one of four places among them. `group_samples` sorts the samples by that place: all samples of a group then go
through the same computation, here and in `compiled`, and differ in numbers alone. Nothing waits for the device.
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

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_IDENTITY = (1.0, 0.0, 0.0)
_NO_JITTER = 4  # behind the places that hue can have


def luma(planes: Planes) -> Tensor:
    """Gray level (N,H,W)."""
    red, green, blue = planes
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def invert(plane: Tensor, threshold: Tensor | float) -> Tensor:
    """The values in [0,1] that are at or above `threshold`, inverted; the others as they are."""
    return torch.where(plane >= threshold, 1 - plane, plane)


def mean(plane: Tensor) -> Tensor:
    """Mean of each sample: (N,H,W) to (N,). Row by row: the same to the bit whatever N is and however many threads."""
    return plane.mean(-1).mean(-1)


def affine(planes: Planes, table: Tensor, level: Tensor | None = None) -> list[Tensor]:
    """Brightness, contrast or saturation, each sample its own, in [0,1].

    `table` (N,3): gain, share of the gray level, share of its mean; `level` (N,): that mean, where it is known.
    """
    gray = luma(planes)
    level = mean(gray) if level is None else level
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


def jittered(planes: Planes, place: int, tables: Tensor, level: Tensor | None = None) -> Planes:
    """Three affine operators and hue, which comes behind `place` of them. `tables` (N,4,3) as in OperatorGroup."""
    *of_affine, turns = tables.unbind(1)
    for table in of_affine[:place]:
        planes = affine(planes, table, level)
    planes = rotate_hue(planes, turns)
    for table in of_affine[place:]:
        planes = affine(planes, table, level)
    return planes


def _broadcast(value: Tensor, plane: Tensor) -> Tensor:
    """Numbers of each sample (N,...), to be combined with a plane (N,H,W) or (N,H·W)."""
    return value[(..., *(None,) * (plane.ndim - 1))]


def hue_turns(factor: Tensor) -> Tensor:
    """By how many sextants each channel's own hue is away after a turn by factor (N,) of the circle: (N,3) in [-3,3).

    In that range the sum with an angle of -3 to 3 stays within one turn, so that `rotate_hue` needs no remainder.
    """
    own = torch.tensor([0.0, 2.0, 4.0], dtype=factor.dtype, device=factor.device)
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

    `gray`, `blur`, `solarize` and `late` (int64) number the samples within the group.
    """

    place: int | None  # how many affine operators come before hue; None: no jitter
    rows: Tensor  # int64 (n,): the samples' places in the batch
    flipped: int  # the first so many are flipped, and no others
    jitter: Tensor  # (n,4,3): a table for each affine operator, in order of application, and the turns of hue
    before: Tensor  # the same up to contrast, which needs the mean of what comes before it
    gray: Tensor
    blur: Tensor
    sigma: Tensor  # one a sample of `blur`
    solarize: Tensor
    late: Tensor  # those of `solarize` that are blurred too


def group_samples(
    params: AugmentationParams, device: torch.device, dtype: torch.dtype, most: int
) -> list[OperatorGroup]:
    """The samples of `params` in groups of at most `most`. Copies to `device` do not block.

    `dtype` is that of tables and sigma.
    """
    jitter, before = _jitter_tables(params)
    place = torch.where(params.jitter, _first(params.order == 3), _NO_JITTER)

    def move(value: Tensor) -> Tensor:
        return value.to(device, non_blocking=True)

    found = []
    for where in range(_NO_JITTER + 1):
        samples = (place == where).nonzero()[:, 0]
        for some in samples.split(most) if len(samples) else ():
            rows = torch.cat([some[params.flip[some]], some[~params.flip[some]]])
            chosen = params[rows]
            flags = {name: getattr(chosen, name) for name in AFTER_JITTER}
            numbers = {name: move(flag.nonzero()[:, 0]) for name, flag in flags.items()}
            group = OperatorGroup(
                place=None if where == _NO_JITTER else where,
                rows=move(rows),
                flipped=int(chosen.flip.sum()),
                jitter=move(jitter[rows].to(dtype)),
                before=move(before[rows].to(dtype)),
                sigma=move(chosen.sigma[chosen.blur].to(dtype)),
                late=move((chosen.blur & chosen.solarize).nonzero()[:, 0]),
                **numbers,
            )
            found.append(group)
    return found


def _jitter_tables(params: AugmentationParams) -> tuple[Tensor, Tensor]:
    """`jitter` and `before` of OperatorGroup for all samples."""
    order = params.order
    kinds = order[order != 3].view(-1, 3)
    factor = params.factors.gather(1, kinds)[..., None]
    nothing = torch.tensor(_IDENTITY, dtype=factor.dtype)
    other = torch.stack([torch.zeros_like(kinds), kinds == 2, kinds == 1], -1)
    affine_ = nothing * factor + (1 - factor) * other
    affine_before = torch.where((kinds == 1).cumsum(1)[..., None] > 0, nothing, affine_)
    hue = params.factors[:, 3]
    hue_before = torch.where(_first(order == 3) < _first(order == 1), hue, 0.0)
    jitter, before = (
        torch.cat([tables, hue_turns(factor)[:, None]], 1)
        for tables, factor in ((affine_, hue), (affine_before, hue_before))
    )
    return jitter, before


def _first(flags: Tensor) -> Tensor:
    return flags.int().argmax(1)
