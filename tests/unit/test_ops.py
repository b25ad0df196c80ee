"""Every operator, and a whole view, against torchvision.transforms.v2.functional on float images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from equimod.benchmarks.reference import replay
from equimod.pipelines import ops
from equimod.pipelines.params import draw
from equimod.pipelines.policy import POLICIES

N, SIZE = 24, 40


def _images(seed: int = 0) -> Tensor:
    """Smooth and noisy float images (N,3,S,S) in [0,1], some gray, black, white or saturated."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(N, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)
    images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    images[0], images[1], images[2] = 0, 1, images[2].mean(0)
    images[3] = images[3].round()
    return images


def _sample_by_sample(function: Callable[[Tensor, float], Tensor], images: Tensor, factors: Tensor) -> Tensor:
    return torch.stack([function(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (ops.brightness, tv.adjust_brightness, 0.0, 1.8),
        (ops.contrast, tv.adjust_contrast, 0.0, 1.8),
        (ops.saturation, tv.adjust_saturation, 0.0, 1.8),
        (ops.hue, tv.adjust_hue, -0.5, 0.5),
        (ops.solarize, tv.solarize, 0.0, 1.0),
        (lambda x, s: ops.gaussian_blur(x, s, 23), lambda x, s: tv.gaussian_blur(x, [23, 23], [s, s]), 0.1, 2.0),
        (lambda x, s: ops.gaussian_blur(x, s, 3), lambda x, s: tv.gaussian_blur(x, [3, 3], [s, s]), 0.1, 2.0),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "solarize", "blur23", "blur3"],
)
def test_operator_replays_torchvision(ours: Callable, theirs: Callable, low: float, high: float) -> None:
    images = _images()
    factors = torch.linspace(low, high, N)
    expected = _sample_by_sample(theirs, images, factors)
    torch.testing.assert_close(ours(images, factors), expected, rtol=0, atol=2e-5)
    assert (expected - images).abs().mean() > 1e-3


def test_flip_and_grayscale_replay_torchvision_on_the_chosen_samples() -> None:
    images, chosen = _images(), torch.arange(N) % 3 == 0
    for ours, theirs in (
        (ops.hflip, tv.horizontal_flip),
        (ops.grayscale, lambda x: tv.rgb_to_grayscale(x, num_output_channels=3)),
    ):
        got = ours(images, chosen)
        torch.testing.assert_close(got[chosen], theirs(images[chosen]), rtol=0, atol=1e-6)
        assert torch.equal(got[~chosen], images[~chosen])


@pytest.mark.parametrize(("name", "view"), [("simclr_imagenet", 0), ("byol_imagenet", 0), ("byol_cifar10", 1)])
def test_a_whole_view_replays_torchvision_operator_by_operator(name: str, view: int) -> None:
    policy = POLICIES[name].views[view]
    params = draw(policy, torch.full((N, 2), SIZE), torch.arange(N), seed=1, epoch=0, view=view)
    images = (_images(1) * 255).round().to(torch.uint8)
    got = ops.apply(images, params, policy)
    # 2e-3 of the unit range; hue is ill-conditioned where a channel's order hangs by a rounding error
    tolerance = 2e-3 / min(policy.normalize.std)
    for row in range(N):
        torch.testing.assert_close(got[row], replay(images[row], params, row, policy), rtol=0, atol=tolerance)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_apply_leaves_alone_what_was_not_drawn() -> None:
    policy = POLICIES["simclr_cifar10"].views[0]
    params = draw(policy, torch.full((N, 2), SIZE), torch.arange(N), seed=1, epoch=0, view=0)
    untouched = ~(params.flip | params.jitter | params.gray)
    assert untouched.any()
    images = (_images() * 255).round().to(torch.uint8)
    expected = ops.normalize(images[untouched].float() / 255, policy.normalize)
    assert torch.equal(ops.apply(images, params, policy)[untouched], expected)


def test_apply_on_a_batch_equals_apply_on_its_parts() -> None:
    policy = POLICIES["byol_imagenet"].views[1]
    params = draw(policy, torch.full((N, 2), SIZE), torch.arange(N), seed=5, epoch=0, view=1)
    images = (_images() * 255).round().to(torch.uint8)
    parts = [ops.apply(images[k : k + 1], params[k : k + 1], policy) for k in range(N)]
    torch.testing.assert_close(ops.apply(images, params, policy), torch.cat(parts), rtol=0, atol=1e-5)


def test_apply_does_not_depend_on_the_memory_layout() -> None:
    policy = POLICIES["simclr_imagenet"].views[0]
    params = draw(policy, torch.full((N, 2), SIZE), torch.arange(N), seed=5, epoch=0, view=1)
    images = (_images() * 255).round().to(torch.uint8)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.apply(last, params, policy), ops.apply(images, params, policy))


def test_a_kernel_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="less than twice the side"):
        ops.gaussian_blur(torch.rand(1, 3, 8, 8), torch.ones(1), 23)
