"""Random views of a batch for any training loop: drawn for each image alone, cut out and changed on its device.

For loops with a loader of their own. `equimod.pipelines.build` has the whole pipeline, which decodes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equimod.pipelines.errors import nearest
from equimod.pipelines.geometry import center_geometry
from equimod.pipelines.operators import Operators, operators_for
from equimod.pipelines.ops import empty_views
from equimod.pipelines.params import AugmentationParams, ParamLayout, draw
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy, Interpolation, ViewPolicy

Images = Tensor | Sequence[Tensor]
"""(N,3,H,W), or N of (3,H,W) of any sizes; uint8, or float in [0,1]; on one device."""


class Augmented(NamedTuple):
    """The views of a batch, one after the other: what they show, and what was done."""

    views: tuple[Tensor, ...]  # (N,3,S,S) each, channels_last, normalised, on the images' device
    params: tuple[AugmentationParams, ...]  # on the host
    encodings: tuple[Tensor, ...]  # (N,P) each, float32, on the images' device, not standardised (paper, A.1)


class Augment:
    """Views of images, drawn from `policy` by (seed, epoch, index, view) alone.

    `policy`: an AugmentationPolicy, or the name of one in POLICIES. The same call gives the same views on every
    device, to rounding, whatever else is in the batch; their parameters to the bit. Resizes as torchvision does with
    antialias, each image with its own box. ValueError for an unknown name.
    """

    def __init__(self, policy: AugmentationPolicy | str, seed: int = 0) -> None:
        if isinstance(policy, str):
            if policy not in POLICIES:
                hint = nearest(policy, POLICIES)
                raise ValueError(f"policy={policy!r}: no such policy{hint}; give one of {', '.join(POLICIES)}")
            policy = POLICIES[policy]
        self.policy, self.seed = policy, seed
        self._operators: dict[torch.device, Operators] = {}

    def __call__(self, images: Images, index: Tensor | Sequence[int], epoch: int) -> Augmented:
        """Draw the views of a batch and make them. `index`: (N,), what each image is known by in the data set.

        ValueError for images of another form.
        """
        sizes = [(image.shape[-1], image.shape[-2]) for image in _checked(images)]
        params = tuple(
            draw(view, sizes, index, seed=self.seed, epoch=epoch, view=number)
            for number, view in enumerate(self.policy.views)
        )
        encodings = tuple(
            ParamLayout.of(view).encode(p).to(images[0].device)
            for view, p in zip(self.policy.views, params, strict=True)
        )
        return Augmented(self.replay(images, params), params, encodings)

    def replay(self, images: Images, params: Sequence[AugmentationParams]) -> tuple[Tensor, ...]:
        """The views that `params`, one a view, say: those of the call that gave them, where the images are the same."""
        images = _checked(images)
        return tuple(self._view(images, p, view) for p, view in zip(params, self.policy.views, strict=True))

    def center(self, images: Images) -> Tensor:
        """The non-augmented images x (N,3,S,S), as the views are."""
        images, x = _checked(images), self.policy.x
        boxes, full, first = [], [], []
        for image in images:
            height, width = image.shape[-2:]
            resized, corner = center_geometry(width, height, x)
            boxes.append((0, 0, width, height))
            full.append(resized)
            first.append(corner)
        pixels = _resized(images, torch.tensor(boxes), torch.tensor(full), torch.tensor(first), x.size, x.interpolation)
        return self._operated(pixels, None, x)

    def _view(self, images: Images, params: AugmentationParams, view: ViewPolicy) -> Tensor:
        size = view.crop.size
        full, first = torch.full((len(params), 2), size), torch.zeros(len(params), 2, dtype=torch.int64)
        pixels = _resized(images, params.crop, full, first, size, view.crop.interpolation)
        return self._operated(pixels, params, view)

    def _operated(self, pixels: Tensor, params: AugmentationParams | None, view: ViewPolicy | CenterPolicy) -> Tensor:
        device = pixels.device
        if device not in self._operators:
            self._operators[device] = operators_for(device)
        operators, out = self._operators[device], empty_views(pixels)
        operators(pixels, params, operators.table(params, view).to(device), view, out)
        return out


def _checked(images: Images) -> Images:
    """Itself. ValueError where it is not `Images`."""
    batch = isinstance(images, Tensor)
    several: Sequence[Tensor] = [images] if isinstance(images, Tensor) else images
    for given in several:
        kind, form = given.dtype, given.shape
        if len(form) != 3 + batch or form[-3] != 3 or not (kind == torch.uint8 or kind.is_floating_point):
            raise ValueError(
                f"images: uint8 or float (N,3,H,W), or several (3,H,W), are wanted, not {kind} {tuple(form)}"
            )
    if not len(images):
        raise ValueError("images: one or more are wanted")
    return images


@torch.no_grad()
def _resized(images: Images, boxes: Tensor, full: Tensor, first: Tensor, size: int, mode: Interpolation) -> Tensor:
    """Of each image, its box (N,4), x, y, width, height, resized to `full` (N,2), and of that the square of `size`
    pixels from `first` (N,2) on: (N,3,size,size), in the type of the images."""
    if not isinstance(images, Tensor):
        each = (images[n][None] for n in range(len(images)))
        parts = zip(each, boxes[:, None], full[:, None], first[:, None], strict=True)
        return torch.cat([_resized(*part, size, mode) for part in parts])
    device, kind = images.device, torch.promote_types(images.dtype, torch.float32)
    boxes, full, first = (numbers.to(device) for numbers in (boxes, full, first))
    across, down = (
        _weights(length, _Axis(boxes[:, n], boxes[:, 2 + n], full[:, n], first[:, n]), size, mode, kind)
        for n, length in enumerate((images.shape[3], images.shape[2]))
    )
    whole = images.is_floating_point()
    with torch.autocast(device.type, enabled=False):
        pixels = (down[:, None] @ (images.to(kind) @ across[:, None].mT)).clamp_(0, 1 if whole else 255)
    return pixels if whole else pixels.round_().to(torch.uint8)


class _Axis(NamedTuple):
    """Along an axis: boxes from `start` on, `extent` pixels long, are to become `full` pixels, from `first` on kept."""

    start: Tensor  # (N,), as all
    extent: Tensor
    full: Tensor
    first: Tensor


def _weights(length: int, axis: _Axis, size: int, mode: Interpolation, kind: torch.dtype) -> Tensor:
    """What each of `length` pixels counts for, (N,size,length), in rows that sum to 1: torch's antialiased resize."""
    start, end = (edge[:, None, None] for edge in (axis.start, axis.start + axis.extent))
    scale = (axis.extent / axis.full.double())[:, None, None]
    out, pixel = (torch.arange(count, device=start.device) for count in (size, length))
    center = start + scale * (axis.first[:, None, None] + out[:, None] + 0.5)
    x = ((pixel + 0.5 - center) / scale.clamp(min=1)).abs().to(kind)
    if mode == "bicubic":  # Keys, 1981, with a = -1/2
        inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, inner, torch.where(x < 2, outer, 0))
    else:
        weight = (1 - x).clamp(min=0)
    weight = torch.where((pixel >= start) & (pixel < end), weight, 0)
    return weight / weight.sum(2, keepdim=True)
