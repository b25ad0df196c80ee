"""What was drawn: every random choice about a view, made before a pixel is read.

`draw` decides from (seed, epoch, index, view) alone; backends and operators carry the decision out. So the
parameters EquiMod learns from are the input of the pixels and cannot disagree with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from equimod.pipelines import philox
from equimod.pipelines.geometry import center_geometry
from equimod.pipelines.policy import (
    OPERATORS,
    AugmentationPolicy,
    CenterPolicy,
    ColorJitter,
    RandomResizedCrop,
    ViewPolicy,
)

_PERMUTATIONS = np.array(list(itertools.permutations(range(4))), dtype=np.int64)
_IDENTITY_FACTORS = (1.0, 1.0, 1.0, 0.0)
_IDENTITY_ORDER = (0, 1, 2, 3)
_BLOCKS = 9
_STATISTICS_EPOCH = philox.WORD_LIMIT - 1  # an epoch no run reaches: statistics are not drawn from training's views


@dataclass(frozen=True, kw_only=True)
class AugmentationParams:
    """The drawn parameters of one view of N samples. An operator that was not drawn holds its default (paper, A.1)."""

    crop: Tensor  # int64 (N,4): x, y, width, height in pixels of the original image
    flip: Tensor  # bool (N,), as jitter, gray, blur and solarize: is the operator applied
    jitter: Tensor
    gray: Tensor
    blur: Tensor
    solarize: Tensor
    factors: Tensor  # float64 (N,4): brightness, contrast, saturation, hue; default 1, 1, 1, 0
    order: Tensor  # int64 (N,4): 0 brightness, 1 contrast, 2 saturation, 3 hue, in order of application
    sigma: Tensor  # float64 (N,): of the blur in pixels of the view; default 0

    def __post_init__(self) -> None:
        n = len(self.crop)
        for field in fields(self):
            shape = tuple(getattr(self, field.name).shape)
            wanted = (n, 4) if field.name in ("crop", "factors", "order") else (n,)
            if shape != wanted:
                raise ValueError(f"AugmentationParams.{field.name} has shape {shape}; {wanted} is wanted")

    def __len__(self) -> int:
        return len(self.crop)

    def __getitem__(self, rows: slice | Tensor) -> AugmentationParams:
        """The parameters of some of the samples."""
        return AugmentationParams(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw(
    policy: ViewPolicy, size: ArrayLike | Tensor, index: ArrayLike | Tensor, *, seed: int, epoch: int, view: int
) -> AugmentationParams:
    """Draw the parameters of view number `view` of each sample.

    `size`: int (N,2), width and height of the original images; `index`: int (N,), positions in the source.
    Boxes follow torchvision's RandomResizedCrop, the order of the jitter is uniform over its 24 permutations.
    Every number has its own place in the stream, so a policy without blur draws the same crops as one with it.
    Raises ValueError for sizes below one pixel and for keys out of range.
    """
    size_ = np.asarray(size, dtype=np.int64)
    index_ = np.asarray(index, dtype=np.int64)
    if size_.shape != (len(index_), 2):
        raise ValueError(f"size has shape {size_.shape}; ({len(index_)}, 2) is wanted, a width and height an index")
    if size_.size and size_.min() < 1:
        raise ValueError(f"an image of {size_.min()} pixels a side; 1 or more is wanted")
    u = philox.uniform(seed, index_, epoch=epoch, stream=view, blocks=_BLOCKS)
    # Columns: 0-19 area and ratio of the ten boxes that torchvision tries, 20-21 position, 22-26 flags, 27 order,
    # 28-31 factors, 32 sigma.
    flags = {
        name: u[:, 22 + k] < (operator.p if (operator := getattr(policy, name)) else 0.0)
        for k, name in enumerate(OPERATORS)
    }
    jitter, blur = flags["jitter"], flags["blur"]
    order = _PERMUTATIONS[(u[:, 27] * 24).astype(np.int64)]
    low, high = policy.blur.sigma if policy.blur else (0.0, 0.0)
    crop = policy.crop
    values: dict[str, NDArray[Any]] = {
        "crop": _identity_boxes(crop, size_)
        if isinstance(crop, CenterPolicy)
        else _boxes(crop, size_, u[:, :20], u[:, 20:22]),
        **flags,
        "factors": np.where(jitter[:, None], _factors(policy.jitter, u[:, 28:32]), _IDENTITY_FACTORS),
        "order": np.where(jitter[:, None], order, _IDENTITY_ORDER),
        "sigma": np.where(blur, low + (high - low) * u[:, 32], 0.0),
    }
    return AugmentationParams(**{name: torch.from_numpy(value) for name, value in values.items()})


def _boxes(
    crop: RandomResizedCrop, size: NDArray[np.int64], attempts: NDArray[np.float64], position: NDArray[np.float64]
) -> NDArray[np.int64]:
    """torchvision.transforms.RandomResizedCrop.get_params for many images at once: int64 (N,4) x, y, w, h."""
    width, height = size[:, :1], size[:, 1:]
    (scale0, scale1), (ratio0, ratio1) = crop.scale, crop.ratio
    area = width * height * (scale0 + (scale1 - scale0) * attempts[:, 0::2])
    aspect = np.exp(np.log(ratio0) + (np.log(ratio1) - np.log(ratio0)) * attempts[:, 1::2])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)[:, None]
    w, h = np.take_along_axis(w, first, 1), np.take_along_axis(h, first, 1)
    free = np.concatenate([width - w + 1, height - h + 1], axis=1)
    box = np.concatenate([np.floor(position * free), w, h], axis=1).astype(np.int64)

    none_fits = ~fits.any(axis=1)
    if none_fits.any():
        box[none_fits] = _central_boxes(size[none_fits], ratio0, ratio1)
    return box


def _central_boxes(size: NDArray[np.int64], ratio0: float, ratio1: float) -> NDArray[np.int64]:
    """The largest central box of an allowed ratio, torchvision's choice where no drawn box fits: int64 (N,4)."""
    width, height = size[:, 0], size[:, 1]
    ratio = width / height
    w = np.where(ratio > ratio1, np.rint(height * ratio1), width).astype(np.int64)
    h = np.where(ratio < ratio0, np.rint(width / ratio0), height).astype(np.int64)
    return np.stack([(width - w) // 2, (height - h) // 2, w, h], axis=1)


def _identity_boxes(x: CenterPolicy, size: NDArray[np.int64]) -> NDArray[np.int64]:
    """The boxes that x shows, to the next whole pixels: int64 (N,4) x, y, w, h."""
    boxes = np.empty((len(size), 4), dtype=np.int64)
    for row, (width, height) in enumerate(size.tolist()):
        resized, corner = center_geometry(width, height, x)
        for axis, (side, new, start) in enumerate(zip((width, height), resized, corner, strict=True)):
            first = round(start * side / new)
            boxes[row, [axis, axis + 2]] = first, max(1, round((start + x.size) * side / new) - first)
    return boxes


def _factors(jitter: ColorJitter | None, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jitter factors from uniform numbers (N,4), as torchvision's ColorJitter: U(max(0, 1-s), 1+s), hue U(-s, s)."""
    strength = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) if jitter else (0.0,) * 4
    low: NDArray[np.float64] = np.array([max(0.0, 1.0 - s) for s in strength[:3]] + [-strength[3]])
    high: NDArray[np.float64] = np.array([1.0 + s for s in strength[:3]] + [strength[3]])
    return low + (high - low) * u


@dataclass(frozen=True)
class ParamLayout:
    """Which component of the encoding stands where (paper, A.1)."""

    flags: tuple[str, ...]
    has_jitter: bool
    has_sigma: bool

    @classmethod
    def of(cls, policy: ViewPolicy) -> ParamLayout:
        """The layout of the operators that are part of `policy`, whatever their probability."""
        flags = tuple(name for name in OPERATORS if getattr(policy, name))
        return cls(flags, has_jitter=policy.jitter is not None, has_sigma=policy.blur is not None)

    @classmethod
    def shared(cls, policy: AugmentationPolicy) -> ParamLayout:
        """The one layout of all views. Raises ValueError where views hold different operators."""
        layouts = {cls.of(view) for view in policy.views}
        if len(layouts) != 1:
            raise ValueError(
                f"views with {len(layouts)} different sets of operators cannot share one encoding; "
                "give every view the same operators, with probability 0 where one is not wanted"
            )
        return layouts.pop()

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each component, in order."""
        jitter = ("brightness", "contrast", "saturation", "hue", "order_0", "order_1", "order_2", "order_3")
        return (
            *self.flags,
            *("crop_x", "crop_y", "crop_width", "crop_height"),
            *(jitter if self.has_jitter else ()),
            *(("sigma",) if self.has_sigma else ()),
        )

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, params: AugmentationParams) -> Tensor:
        """The vectors of paper A.1, not standardised: float32 (N,P) on the host."""
        columns = [getattr(params, name)[:, None] for name in self.flags]
        columns.append(params.crop)
        if self.has_jitter:
            columns += [params.factors, params.order]
        if self.has_sigma:
            columns.append(params.sigma[:, None])
        return torch.cat([column.to(torch.float32) for column in columns], dim=1)


class Standardizer(nn.Module):
    """Component-wise (t - mean) / std of encoded parameters (paper, A.1); the statistics travel with the checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        """`mean`, `std`: (P,). A component that never varies (std 0) is only centred."""
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError(f"mean {tuple(mean.shape)} and std {tuple(std.shape)} must both be (P,)")
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    @classmethod
    def fit(
        cls, policy: AugmentationPolicy, sizes: NDArray[np.int32], *, seed: int = 0, draws: int = 200_000
    ) -> Standardizer:
        """Statistics of the encodings that `policy` draws over images of these sizes, all views pooled.

        `sizes`: int (M,2), original width and height of the data set's images. About `draws` vectors are drawn.
        The same arguments give the same statistics on every rank.
        """
        layout = ParamLayout.shared(policy)
        per_view = -(-draws // len(policy.views))
        rows = (
            np.arange(per_view) * len(sizes) // per_view if per_view < len(sizes) else np.arange(per_view) % len(sizes)
        )
        encodings = torch.cat(
            [
                layout.encode(
                    draw(view, sizes[rows], np.arange(per_view), seed=seed, epoch=_STATISTICS_EPOCH, view=number)
                )
                for number, view in enumerate(policy.views)
            ]
        ).double()
        return cls(encodings.mean(0).float(), encodings.std(0, correction=0).float())

    def forward(self, encoding: Tensor) -> Tensor:
        """Standardise encodings (N,P)."""
        return (encoding - self.mean) / self.std
