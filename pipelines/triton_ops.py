"""The operators of `ops.apply` as Triton kernels: a view in one pass over its pixels, on a GPU.

A program works on a block of one sample and finds what to do in that sample's row of a table (`table`), so samples need
no sorting, and nothing is compiled again for another batch. One kernel before that computes the mean that contrast
needs: a sum for each block, added up in the order of the blocks, so the bits do not depend on the batch. Samples with
a blur are written before normalisation, and read again by two more kernels: along rows, then along columns with
solarize and normalisation behind it. Everything is computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from equimod.pipelines.color import LUMA, NO_JITTER, jitter_tables, place_of_hue, reject_kernel
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import CenterPolicy, ViewPolicy

BLOCK = 1024
"""Pixels of a program, or values of one that blurs."""

_NEVER = 2.0  # a threshold above every value
_REACH = 5.5  # sigmas beyond which a weight is less than float32 tells from 0 beside the one in the middle

# Columns of the table. Before them stand nine numbers for the three affine operators in their order, then three of hue.
_TURNS: tl.constexpr = tl.constexpr(9)
_PLACE: tl.constexpr = tl.constexpr(12)  # affine operators before hue, or NO_JITTER
_CONTRAST: tl.constexpr = tl.constexpr(13)  # affine operators before contrast
_FLIP: tl.constexpr = tl.constexpr(14)
_GRAY: tl.constexpr = tl.constexpr(15)
_THRESHOLD: tl.constexpr = tl.constexpr(16)  # of solarize
_TAPS: tl.constexpr = tl.constexpr(17)  # of the blur on each side of the middle; negative: no blur
_DECAY: tl.constexpr = tl.constexpr(18)  # of its weights with the square of the distance
_MIDDLE: tl.constexpr = tl.constexpr(19)  # its weight there
WIDTH = 20

_NO_JITTER: tl.constexpr = tl.constexpr(NO_JITTER)
_RED: tl.constexpr = tl.constexpr(LUMA[0])
_GREEN: tl.constexpr = tl.constexpr(LUMA[1])
_BLUE: tl.constexpr = tl.constexpr(LUMA[2])


def table(params: AugmentationParams | None, policy: ViewPolicy | CenterPolicy) -> Tensor:
    """What the kernels need of each sample's parameters: float32 (N, WIDTH), on the host.

    Without parameters one row, which stands for any number of samples to which nothing happens.
    """
    rows = torch.zeros(1 if params is None else len(params), WIDTH, dtype=torch.float64)
    rows[:, _PLACE.value], rows[:, _THRESHOLD.value], rows[:, _TAPS.value] = NO_JITTER, _NEVER, -1
    if params is None or isinstance(policy, CenterPolicy):
        return rows.float()
    rows[:, : _PLACE.value] = jitter_tables(params).flatten(1)
    rows[:, _PLACE.value] = place_of_hue(params)
    kinds = params.order[params.order != 3].view(-1, 3)
    rows[:, _CONTRAST.value] = (kinds == 1).int().argmax(1).double()
    rows[:, _FLIP.value], rows[:, _GRAY.value] = params.flip.double(), params.gray.double()
    if policy.solarize is not None:
        rows[params.solarize, _THRESHOLD.value] = policy.solarize.threshold / 255
    if policy.blur is not None:
        half, sigma = policy.blur.kernel_size // 2, params.sigma[params.blur].double()
        decay = -0.5 / sigma.square()
        weights = torch.exp(decay[:, None] * torch.arange(-half, half + 1).square())
        rows[params.blur, _TAPS.value] = (_REACH * sigma).ceil().clamp(max=half)
        rows[params.blur, _DECAY.value], rows[params.blur, _MIDDLE.value] = decay, 1 / weights.sum(1)
    return rows.float()


def apply(images: Tensor, rows: Tensor, policy: ViewPolicy | CenterPolicy, out: Tensor) -> None:
    """Carry out on cropped and resized images what stands in `rows`, the `table` of their parameters.

    `images`: (N,3,S,S), uint8 or float in [0,1]; `rows`: on their device; `out`: (N,3,S,S) channels_last, float32 or
    half as wide, which takes the normalised views. ValueError for a blur of twice the side or more.
    """
    n, _, height, width = images.shape
    images, pixels = images.contiguous(memory_format=torch.channels_last), height * width
    assert out.is_contiguous(memory_format=torch.channels_last)
    blocks, stride = triton.cdiv(pixels, BLOCK), WIDTH if len(rows) > 1 else 0
    jitter, blur = (policy.jitter, policy.blur) if isinstance(policy, ViewPolicy) else (None, None)
    if blur is not None:
        reject_kernel(blur.kernel_size, height, width)
    sums = torch.empty(n if jitter else 0, blocks, dtype=torch.float32, device=images.device)
    # Values in [0,1] are more precise as float16 than as bfloat16, and take the same space.
    sharp = out if out.dtype == torch.float32 else out.view(torch.float16)
    of_normalize = (*policy.normalize.mean, *(1 / std for std in policy.normalize.std))
    if jitter:
        _launch(level_kernel, n * blocks, images, rows, sums, pixels, stride, blocks, BLOCK=BLOCK)
    places = triton.next_power_of_2(blocks)
    numbers = (pixels, width, stride, blocks, *of_normalize)
    _launch(color_kernel, n * blocks, images, rows, sums, out, sharp, *numbers, BLOCK=BLOCK, PLACES=places)
    if blur is None:
        return
    between = torch.empty_like(sharp)
    blocks = triton.cdiv(3 * pixels, BLOCK)
    for source, target, down in ((sharp, between, False), (between, out, True)):
        numbers = (height, width, stride, blocks, *of_normalize)
        _launch(blur_kernel, n * blocks, source, rows, target, *numbers, DOWN=down, BLOCK=BLOCK)


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    kernel[(programs,)](*arguments, **constants)


@triton.jit
def level_kernel(images, table, sums, pixels, stride, blocks, BLOCK: tl.constexpr):
    """Sum of the gray level before contrast, of each block of each sample with a jitter: `sums` (N, blocks)."""
    n = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    row = table + n * stride
    place = tl.load(row + _PLACE).to(tl.int32)
    if place < _NO_JITTER:
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = at < pixels
        red, green, blue = _pixels(images + n.to(tl.int64) * pixels * 3 + at * 3, inside)
        contrast = tl.load(row + _CONTRAST).to(tl.int32)
        for k in tl.static_range(3):
            if (k == place) & (k <= contrast):
                red, green, blue = _turned(red, green, blue, row)
            if k < contrast:
                red, green, blue = _affine(red, green, blue, row + 3 * k, 0.0)
        tl.store(sums + n * blocks + block, _sum(tl.where(inside, _luma(red, green, blue), 0.0)))


@triton.jit
def color_kernel(
    images, table, sums, out, sharp, pixels, width, stride, blocks, mean0, mean1, mean2, scale0, scale1, scale2,
    BLOCK: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Flip, jitter, gray, solarize and normalisation to `out`; of samples with a blur the first three, to `sharp`."""
    n = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    row = table + n * stride
    start = n.to(tl.int64) * pixels * 3
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    mirrored = (at // width) * width + (width - 1 - at % width)
    source = tl.where(tl.load(row + _FLIP) > 0, mirrored, at)
    red, green, blue = _pixels(images + start + source * 3, inside)
    place = tl.load(row + _PLACE).to(tl.int32)
    if place < _NO_JITTER:
        of_block = tl.arange(0, PLACES)
        level = _sum(tl.load(sums + n * blocks + of_block, mask=of_block < blocks, other=0.0)) / pixels
        for k in tl.static_range(4):
            if k == place:
                red, green, blue = _turned(red, green, blue, row)
            if k < 3:
                red, green, blue = _affine(red, green, blue, row + 3 * k, level)
    if tl.load(row + _GRAY) > 0:
        gray = _luma(red, green, blue)
        red, green, blue = gray, gray, gray
    if tl.load(row + _TAPS) < 0:
        threshold = tl.load(row + _THRESHOLD)
        target = out + start + at * 3
        tl.store(target, (_inverted(red, threshold) - mean0) * scale0, mask=inside)
        tl.store(target + 1, (_inverted(green, threshold) - mean1) * scale1, mask=inside)
        tl.store(target + 2, (_inverted(blue, threshold) - mean2) * scale2, mask=inside)
    else:
        kept = sharp + start + at * 3
        tl.store(kept, red, mask=inside)
        tl.store(kept + 1, green, mask=inside)
        tl.store(kept + 2, blue, mask=inside)


@triton.jit
def blur_kernel(
    source, table, target, height, width, stride, blocks, mean0, mean1, mean2, scale0, scale1, scale2,
    DOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blur the samples that have one, along rows, or down columns with solarize and normalisation behind it."""
    n = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    row = table + n * stride
    taps = tl.load(row + _TAPS).to(tl.int32)
    if taps >= 0:
        decay, middle = tl.load(row + _DECAY), tl.load(row + _MIDDLE)
        values = height * width * 3
        start = n.to(tl.int64) * values
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = at < values
        channel, x, y = at % 3, (at // 3) % width, at // (3 * width)
        blurred = tl.full((BLOCK,), 0.0, tl.float32)
        for tap in range(-taps, taps + 1):
            weight = middle * tl.exp(decay * tap * tap)
            if DOWN:
                other = (_reflected(y + tap, height) * width + x) * 3 + channel
            else:
                other = (y * width + _reflected(x + tap, width)) * 3 + channel
            blurred += weight * tl.load(source + start + other, mask=inside, other=0.0).to(tl.float32)
        if DOWN:
            mean = tl.where(channel == 0, mean0, tl.where(channel == 1, mean1, mean2))
            scale = tl.where(channel == 0, scale0, tl.where(channel == 1, scale1, scale2))
            blurred = (_inverted(blurred, tl.load(row + _THRESHOLD)) - mean) * scale
        tl.store(target + start + at, blurred, mask=inside)


@triton.jit
def _pixels(address, inside):
    """Red, green and blue in [0,1]."""
    red = tl.load(address, mask=inside, other=0)
    green = tl.load(address + 1, mask=inside, other=0)
    blue = tl.load(address + 2, mask=inside, other=0)
    if red.dtype == tl.uint8:
        return _unit(red), _unit(green), _unit(blue)
    return red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32)


@triton.jit
def _unit(byte):
    # Rounded as torch does: 128 / 255 must not come to lie below solarize's threshold.
    return tl.div_rn(byte.to(tl.float32), 255.0)


@triton.jit
def _sum(values):
    return tl.reduce(values, 0, _plus)


@triton.jit
def _plus(a, b):
    return a + b


@triton.jit
def _luma(red, green, blue):
    return red * _RED + green * _GREEN + blue * _BLUE


@triton.jit
def _inverted(value, threshold):
    return tl.where(value >= threshold, 1 - value, value)


@triton.jit
def _reflected(position, length):
    position = tl.abs(position)
    return tl.where(position >= length, 2 * length - 2 - position, position)


@triton.jit
def _affine(red, green, blue, numbers, level):
    """`color.affine`: gain, share of the gray level and share of its mean stand at `numbers`."""
    gain = tl.load(numbers)
    other = _luma(red, green, blue) * tl.load(numbers + 1) + level * tl.load(numbers + 2)
    return _clamped(red * gain + other), _clamped(green * gain + other), _clamped(blue * gain + other)


@triton.jit
def _clamped(value):
    return tl.minimum(tl.maximum(value, 0.0), 1.0)


@triton.jit
def _turned(red, green, blue, row):
    """`color.rotate_hue`."""
    low = tl.minimum(tl.minimum(red, green), blue)
    high = tl.maximum(tl.maximum(red, green), blue)
    chroma = high - low
    angle = green + blue - red + high - 2.0 * low
    angle = tl.where(green < blue, -angle, angle)
    red = _channel(angle, chroma, low, high, tl.load(row + _TURNS))
    green = _channel(angle, chroma, low, high, tl.load(row + _TURNS + 1))
    blue = _channel(angle, chroma, low, high, tl.load(row + _TURNS + 2))
    return red, green, blue


@triton.jit
def _channel(angle, chroma, low, high, turn):
    away = tl.abs(angle + chroma * turn)
    away = tl.abs(away - 3.0 * chroma) + (low - chroma)
    return tl.minimum(tl.maximum(away, low), high)
