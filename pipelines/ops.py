"""What the drawn parameters do to pixels: batched operators on any device, and `apply`, which runs a whole policy.

Operators follow torchvision.transforms.v2.functional on float images; a factor is given per sample. Which samples an
operator touches is known on the host before the images are read, so `apply` computes nothing for the others and never
waits for the device. Images stay float between operators: nothing is rounded or truncated on the way.
`equimod.pipelines.triton_ops` has the same for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equimod.pipelines.color import (
    OperatorGroup,
    Planes,
    affine,
    gaussian_kernels,
    group_samples,
    hue_turns,
    invert,
    jittered,
    luma,
    reject_kernel,
    rotate_hue,
)
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import CenterPolicy, Normalize, ViewPolicy

CACHED_PIXELS = 8 * 224 * 224
"""Of a plane, on a CPU at a time: eight views of 224 pixels, which stay in its cache from operator to operator."""


def hflip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the samples whose `flip` (N,) is true. Images (N,3,H,W)."""
    return torch.where(_per_sample(flip), images.flip(-1), images)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images (N,3,H,W) in [0,1] with black: factor (N,) 0 is black, 1 the image."""
    return _affine(images, factor, torch.zeros_like(factor), torch.zeros_like(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images (N,3,H,W) in [0,1] with the mean of their gray level: factor (N,) 0 is flat, 1 the image."""
    return _affine(images, factor, torch.zeros_like(factor), 1 - factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend images (N,3,H,W) in [0,1] with their gray level: factor (N,) 0 is gray, 1 the image."""
    return _affine(images, factor, 1 - factor, torch.zeros_like(factor))


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue of images (N,3,H,W) in [0,1] by factor (N,) of the colour circle, -0.5 to 0.5 (HSV)."""
    return torch.stack(rotate_hue(images.unbind(1), hue_turns(factor).to(images.dtype)), 1)


def grayscale(images: Tensor, gray: Tensor) -> Tensor:
    """Replace the samples (N,3,H,W) whose `gray` (N,) is true by their gray level in all channels."""
    return torch.where(_per_sample(gray), luma(images.unbind(1))[:, None], images)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur images (N,3,H,W) with sigma (N,) pixels, an odd kernel and reflected borders, a row and a column pass.

    Raises ValueError for a kernel of twice the side or more.
    """
    n, channels, height, width = images.shape
    half = kernel_size // 2
    reject_kernel(kernel_size, height, width)
    weight = gaussian_kernels(sigma.to(images.dtype), kernel_size).repeat_interleave(channels, 0)[:, None, None]
    padded = F.pad(images, (half, half, half, half), mode="reflect").reshape(1, n * channels, height + 2 * half, -1)
    blurred = F.conv2d(padded, weight, groups=n * channels)
    blurred = F.conv2d(blurred, weight.transpose(2, 3), groups=n * channels)
    return blurred.reshape(images.shape)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values of images (N,3,H,W) in [0,1] at or above threshold (N,)."""
    return invert(images, _per_sample(threshold))


def normalize(images: Tensor, policy: Normalize) -> Tensor:
    """(images - mean) / std a channel, images (N,3,H,W) in [0,1]."""
    return torch.stack(list(_normalized(images.unbind(1), policy)), 1)


def apply(images: Tensor, params: AugmentationParams, policy: ViewPolicy, out: Tensor | None = None) -> Tensor:
    """Carry out on cropped and resized images what was drawn for them.

    `images`: (N,3,S,S) on any device, uint8 or float in [0,1]; `params`: of the same N samples, on the host.
    Returns (N,3,S,S), channels_last, normalised: `out`, of any float type, or a new tensor of float32 (of float64
    images: float64).
    """
    n, _, height, width = images.shape
    out = empty_views(images) if out is None else out
    most = max(2, CACHED_PIXELS // (height * width)) if images.device.type == "cpu" else n
    for group in group_samples(params, images.device, _computed(images), most):
        _apply_group(images.permute(0, 2, 3, 1), group, policy, out.permute(0, 2, 3, 1))
    return out


def apply_center(images: Tensor, policy: CenterPolicy, out: Tensor | None = None) -> Tensor:
    """Normalise the non-augmented images: (N,3,S,S) as of `apply` to the same."""
    out = empty_views(images) if out is None else out
    _write(_to_float(images.permute(1, 0, 2, 3)).unbind(0), policy.normalize, out.permute(0, 2, 3, 1))
    return out


def host_memory(elements: int, dtype: torch.dtype) -> Tensor:
    """Memory for so many numbers, not initialised, of one dimension."""
    # numpy asks for huge pages: with them a view of 224 pixels costs .25 ms less in page faults
    return torch.from_numpy(np.empty(elements * dtype.itemsize, np.uint8)).view(dtype)


def empty_views(images: Tensor) -> Tensor:
    """Memory for the views (N,3,S,S) of images of this shape, channels_last."""
    if images.device.type != "cpu":
        return torch.empty_like(images, dtype=_computed(images), memory_format=torch.channels_last)
    n, channels, height, width = images.shape
    return host_memory(images.numel(), _computed(images)).view(n, height, width, channels).permute(0, 3, 1, 2)


def _apply_group(images: Tensor, group: OperatorGroup, policy: ViewPolicy, out: Tensor) -> None:
    """Images (N,H,W,3), uint8 or float, to `out` (N,H,W,3): the samples of `group`, and no others."""
    planes: Planes = _to_float(_select_group(images, group).permute(3, 0, 1, 2)).unbind(0)
    if group.place is not None:
        planes = jittered(planes, group.place, group.jitter)
    planes = _on_rows(planes, group.gray, lambda chosen: [luma(chosen)] * 3)
    if policy.blur is not None:
        size = policy.blur.kernel_size
        planes = _on_rows(planes, group.blur, lambda c: gaussian_blur(torch.stack(c, 1), group.sigma, size).unbind(1))
    if policy.solarize is not None:
        threshold = policy.solarize.threshold / 255
        planes = _on_rows(planes, group.solarize, lambda chosen: [invert(c, threshold) for c in chosen])
    pixels = out.new_empty(len(group.rows), *out.shape[1:])
    _write(planes, policy.normalize, pixels)
    out.index_copy_(0, group.rows, pixels)


def _select_group(images: Tensor, group: OperatorGroup) -> Tensor:
    """The samples of a group, flipped where that was drawn: from all (N,H,W,3) to (n,H,W,3)."""
    flipped, others = images.index_select(0, group.rows).tensor_split([group.flipped])
    return torch.cat([flipped.flip(2), others])


def _write(planes: Planes, policy: Normalize, out: Tensor) -> None:
    """The planes, normalised, as the channels of `out` (N,H,W,3)."""
    for channel, plane in zip(out.unbind(-1), _normalized(planes, policy), strict=True):
        channel.copy_(plane)


def _normalized(planes: Planes, policy: Normalize) -> Iterator[Tensor]:
    return ((plane - mean).div_(std) for plane, mean, std in zip(planes, policy.mean, policy.std, strict=True))


def _on_rows(planes: Planes, rows: Tensor, operator: Callable[[list[Tensor]], Planes]) -> Planes:
    if not len(rows):
        return planes
    done = operator([plane.index_select(0, rows) for plane in planes])
    return [plane.index_copy_(0, rows, changed) for plane, changed in zip(planes, done, strict=True)]


def _to_float(images: Tensor) -> Tensor:
    pixels = images.to(_computed(images), memory_format=torch.contiguous_format)
    return pixels if images.is_floating_point() else pixels.div_(255)


def _computed(images: Tensor) -> torch.dtype:
    return torch.promote_types(images.dtype, torch.float32)


def _affine(images: Tensor, *columns: Tensor) -> Tensor:
    return torch.stack(affine(images.unbind(1), torch.stack(columns, 1).to(images.dtype)), 1)


def _per_sample(value: Tensor) -> Tensor:
    return value[:, None, None, None]
