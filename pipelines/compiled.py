"""`ops.apply` by torch.compile: the colour operators of a group in two passes over its pixels.

Contrast needs a mean first. So one kernel runs each sample's operators up to contrast for that mean, and another runs
them all and writes the normalised result, once. Blur and normalisation commute, so the few samples that are blurred are
read back from there. On a CPU little faster than `ops.apply`, which works within its cache; not run on a GPU yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equimod.pipelines.color import OperatorGroup, Planes, invert, jittered, luma
from equimod.pipelines.ops import apply_group, gaussian_blur, in_groups, select_group
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import ViewPolicy

_NEVER = 2.0  # a threshold above every value


def apply(images: Tensor, params: AugmentationParams, policy: ViewPolicy) -> Tensor:
    """As `ops.apply`, equal to within rounding. The first calls take a minute on a CPU, to compile."""
    return in_groups(images, params, policy, _apply_group)


def level(pixels: Tensor, before: Tensor, place: int) -> Tensor:
    """Mean gray level (n,) at contrast: pixels (3,n,P), tables (n,4,3) without contrast and what follows it."""
    planes = jittered(_to_float(pixels, before.dtype), place, before, before.new_zeros(before.shape[0]))
    return luma(planes).mean(1)


def colored(pixels: Tensor, numbers: Tensor, levels: Tensor, normal: Tensor, place: int | None) -> Tensor:
    """Jitter, gray, solarize and normalize pixels (3,n,P) to (n,P,3).

    `numbers` (n,14): tables of jitter, whether gray, threshold; `levels` (n,); `normal` (2,3): mean and 1 / std.
    """
    planes: Planes = _to_float(pixels, numbers.dtype)
    if place is not None:
        planes = jittered(planes, place, numbers[:, :12].unflatten(1, (4, 3)), levels)
    gray, is_gray, threshold = luma(planes), numbers[:, 12:13] > 0, numbers[:, 13:14]
    planes = [torch.where(is_gray, gray, plane) for plane in planes]
    planes = [invert(plane, threshold) for plane in planes]
    mean, scale = normal.unbind(0)
    return torch.stack([(plane - m) * s for plane, m, s in zip(planes, mean, scale, strict=True)], -1)


def color(
    pixels: Tensor, numbers: Tensor, levels: Tensor, rows: Tensor, normal: Tensor, out: Tensor, place: int | None
) -> None:
    """`colored`, into the rows (n,) of `out` (N,P,3)."""
    out[rows] = colored(pixels, numbers, levels, normal, place)


# Dynamic: one compilation for each place of hue, whatever the number of samples (but 1) and their size.
_level = torch.compile(level, fullgraph=True, dynamic=True)
_color = torch.compile(color, fullgraph=True, dynamic=True)


def _apply_group(images: Tensor, group: OperatorGroup, policy: ViewPolicy, out: Tensor) -> None:
    n, height, width, _ = out.shape
    if len(group.rows) == 1:  # a number that torch would compile for once more
        apply_group(images, group, policy, out)
        return
    pixels = torch.stack(select_group(images, group).flatten(1, 2).unbind(-1))
    mean, std = (out.new_tensor(value) for value in (policy.normalize.mean, policy.normalize.std))
    threshold = policy.solarize.threshold / 255 if policy.solarize else _NEVER
    extra = out.new_tensor([0.0, _NEVER]).repeat(len(group.rows), 1)
    extra[:, 0].index_fill_(0, group.gray, 1.0)
    extra[:, 1].index_fill_(0, group.solarize, threshold).index_fill_(0, group.late, _NEVER)
    numbers = torch.cat([group.jitter.flatten(1), extra], 1)
    levels = extra[:, 0]  # of no use without jitter
    if group.place is not None:
        levels = _level(pixels, group.before, group.place)
    flat, normal = out.view(n, height * width, 3), torch.stack([mean, 1 / std])
    _color(pixels, numbers, levels, group.rows, normal, flat, group.place)
    if policy.blur is not None and len(group.blur):
        rows = group.rows[group.blur]
        sharp = out.index_select(0, rows).permute(0, 3, 1, 2).contiguous()
        out.index_copy_(0, rows, gaussian_blur(sharp, group.sigma, policy.blur.kernel_size).permute(0, 2, 3, 1))
    if len(group.late):
        rows = group.rows[group.late]
        blurred = out.index_select(0, rows).mul_(std).add_(mean)
        out.index_copy_(0, rows, invert(blurred, threshold).sub_(mean).div_(std))


def _to_float(pixels: Tensor, dtype: torch.dtype) -> list[Tensor]:
    scale = 1.0 if pixels.is_floating_point() else 1 / 255
    return [plane.to(dtype) * scale for plane in pixels.unbind(0)]
