"""The operators that `throughput.py augment` compares: the same uint8 crops in, normalised float views out.

Every contender draws its own parameters, with the probabilities and strengths of one policy: this project before it
works, as its pipeline does, the others while they do. torchvision and Pillow work image by image, as a DataLoader's
worker does; this project and kornia on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equimod.benchmarks.measure import Workload
from equimod.pipelines import ops
from equimod.pipelines.operators import operators_for
from equimod.pipelines.params import AugmentationParams, draw
from equimod.pipelines.policy import POLICIES, Normalize, ViewPolicy

Prepare = Callable[[AugmentationParams, ViewPolicy], Callable[[Tensor], Tensor]]
"""From what was drawn to operators on crops."""
Views = Sequence[Tensor]
Augment = Callable[[Views, int], Views]
"""From uint8 crops (N,3,S,S) a view, and the number of the batch, to normalised float32 views."""


@dataclass(frozen=True)
class AugmentSettings:
    """What the operators are given."""

    policy: str
    batch_size: int
    images: int  # a round; each makes all views of the policy
    threads: int  # of torch
    device: str


def smooth_crops(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Uint8 images (n,3,size,size) on the host: smooth colours with noise, which take all branches of hue."""
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    noise = 0.1 * torch.randn(smooth.shape, generator=generator)
    return (255 * (smooth + noise)).clamp(0, 255).to(torch.uint8)


def crops(settings: AugmentSettings) -> Views:
    """A batch of uint8 crops (N,3,S,S) a view."""
    generator = torch.Generator().manual_seed(0)
    sizes = (view.crop.size for view in POLICIES[settings.policy].views)
    return tuple(smooth_crops(settings.batch_size, size, generator).to(settings.device) for size in sizes)


def _load(build: Callable[[AugmentSettings], Augment], settings: AugmentSettings) -> Workload:
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    if device.type == "cuda":  # kernels are launched, and the clock asks, where the process is
        torch.cuda.set_device(device.index or 0)
    views, augment = crops(settings), build(settings)

    def load(epoch: int) -> Iterator[int]:
        for number in range(settings.images // settings.batch_size):
            augment(views, number)
            yield settings.batch_size

    return load


def equimod(settings: AugmentSettings) -> Augment:
    """This project's operators: on a GPU its kernels, where they work."""
    device = torch.device(settings.device)
    operators = operators_for(device)

    def prepare(params: AugmentationParams, policy: ViewPolicy) -> Callable[[Tensor], Tensor]:
        table = operators.table(params, policy).to(device)

        def augment(images: Tensor) -> Tensor:
            out = ops.empty_views(images)
            operators(images, params, table, policy, out)
            return out

        return augment

    return _ours(settings, prepare)


def one_by_one(settings: AugmentSettings) -> Augment:
    """The same by the public operators, each over all samples that drew it; these take numbers to a GPU as they go."""
    return _ours(settings, lambda params, policy: partial(chained, params=params, policy=policy))


def chained(images: Tensor, params: AugmentationParams, policy: ViewPolicy) -> Tensor:
    """As `ops.apply`."""
    images = images.float() / 255

    def over(drawn: Tensor, operator: Callable[..., Tensor], *numbers: Tensor) -> None:
        rows = drawn.nonzero()[:, 0]
        given = (number[rows].float().to(images.device) for number in numbers)
        images[rows] = operator(images[rows], *given)

    over(params.flip, lambda chosen: chosen.flip(-1))
    for kinds in params.order.unbind(1):
        for kind, operator in enumerate((ops.brightness, ops.contrast, ops.saturation, ops.hue)):
            over(params.jitter & (kinds == kind), operator, params.factors[:, kind])
    over(params.gray, lambda chosen: ops.grayscale(chosen, chosen.new_ones(len(chosen)) > 0))
    if policy.blur:
        over(params.blur, partial(ops.gaussian_blur, kernel_size=policy.blur.kernel_size), params.sigma)
    if policy.solarize:
        over(params.solarize, ops.solarize, torch.full_like(params.sigma, policy.solarize.threshold / 255))
    return ops.normalize(images, policy.normalize)


def _ours(settings: AugmentSettings, prepare: Prepare) -> Augment:
    policy = POLICIES[settings.policy]
    index = np.arange(settings.batch_size)
    size = np.full((len(index), 2), policy.size)

    def drawn(batch: int) -> list[Callable[[Tensor], Tensor]]:
        return [
            prepare(draw(view, size, index, seed=0, epoch=batch, view=number), view)
            for number, view in enumerate(policy.views)
        ]

    batches = [drawn(batch) for batch in range(settings.images // settings.batch_size)]

    def augment(views: Views, batch: int) -> Views:
        return [apply(view) for view, apply in zip(views, batches[batch], strict=True)]

    return augment


def torchvision(settings: AugmentSettings) -> Augment:
    """torchvision's v2 transforms on tensors."""
    of_views = [transforms(policy) for policy in POLICIES[settings.policy].views]

    def augment(views: Views, _: int) -> Views:
        pairs = zip(views, of_views, strict=True)
        return [torch.stack([transform(image) for image in view]) for view, transform in pairs]

    return augment


def pillow(settings: AugmentSettings) -> Augment:
    """torchvision's v2 transforms on Pillow images, from tensors that are already there and back to one."""
    from torchvision.transforms.v2 import functional as F

    of_views = [transforms(policy) for policy in POLICIES[settings.policy].views]
    images = [[F.to_pil_image(image) for image in view.cpu()] for view in crops(settings)]

    def augment(views: Views, _: int) -> Views:
        pairs = zip(images, of_views, strict=True)
        return [torch.stack([transform(image) for image in view]).to(settings.device) for view, transform in pairs]

    return augment


def transforms(policy: ViewPolicy) -> Callable[[Any], Tensor]:
    """torchvision's v2 transforms behind the crop, from a tensor or a Pillow image to a normalised float32 view."""
    from torchvision.transforms import v2

    steps: list[nn.Module] = []
    if policy.flip:
        steps.append(v2.RandomHorizontalFlip(policy.flip.p))
    if policy.jitter:
        j = policy.jitter
        steps.append(v2.RandomApply([v2.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue)], j.p))
    if policy.gray:
        steps.append(v2.RandomGrayscale(policy.gray.p))
    if policy.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(policy.blur.kernel_size, policy.blur.sigma)], policy.blur.p))
    if policy.solarize:
        steps.append(v2.RandomSolarize(policy.solarize.threshold, policy.solarize.p))
    return normalized(policy.normalize, *steps)


def normalized(policy: Normalize, *steps: nn.Module) -> Callable[[Any], Tensor]:
    """`steps`, then to a normalised float32 tensor."""
    from torchvision.transforms import v2

    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(policy.mean), list(policy.std))]
    transform: Callable[[Any], Tensor] = v2.Compose([*steps, *last])
    return transform


def kornia(settings: AugmentSettings) -> Augment:
    """kornia's augmentations, a batch at a time; one order of the jitter for the whole batch, as kornia draws it."""
    import kornia.augmentation as K

    def sequence_of(policy: ViewPolicy) -> nn.Module:
        steps: list[nn.Module] = []
        if policy.flip:
            steps.append(K.RandomHorizontalFlip(policy.flip.p))
        if policy.jitter:
            j = policy.jitter
            steps.append(K.ColorJitter(j.brightness, j.contrast, j.saturation, j.hue, p=j.p))
        if policy.gray:
            steps.append(K.RandomGrayscale(p=policy.gray.p))
        if policy.blur:
            side = (policy.blur.kernel_size, policy.blur.kernel_size)
            steps.append(K.RandomGaussianBlur(side, policy.blur.sigma, p=policy.blur.p))
        if policy.solarize:
            threshold = policy.solarize.threshold / 255
            steps.append(K.RandomSolarize((threshold, threshold), (0.0, 0.0), p=policy.solarize.p))
        return nn.Sequential(*steps, K.Normalize(policy.normalize.mean, policy.normalize.std))

    sequences = [sequence_of(policy).to(settings.device) for policy in POLICIES[settings.policy].views]

    def augment(views: Views, _: int) -> Views:
        return [sequence(view.float() / 255) for view, sequence in zip(views, sequences, strict=True)]

    return augment


AUGMENTS: dict[str, Callable[[AugmentSettings], Augment]] = {
    "equimod": equimod,
    "one_by_one": one_by_one,
    "kornia": kornia,
    "torchvision": torchvision,
    "pillow": pillow,
}

AUGMENTERS: dict[str, Callable[[AugmentSettings], Workload]] = {
    name: partial(_load, build) for name, build in AUGMENTS.items()
}
