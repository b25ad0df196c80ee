"""Views for a loop of one's own: torchvision's pixels, the pipeline's draws, and nothing that depends on the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from equimod.pipelines import Augment, Augmented
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.decode import decode_sample
from equimod.pipelines.policy import (
    POLICIES,
    AugmentationPolicy,
    CenterPolicy,
    HorizontalFlip,
    Interpolation,
    Normalize,
    RandomResizedCrop,
    ViewPolicy,
)
from equimod.pipelines.records import open_records

PLAIN = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _crops(size: int, interpolation: Interpolation = "bicubic", resize: int | None = None) -> AugmentationPolicy:
    """Nothing but crops."""
    view = ViewPolicy(RandomResizedCrop(size, interpolation=interpolation), PLAIN, flip=HorizontalFlip(0.0))
    return AugmentationPolicy(CenterPolicy(size, resize or size, PLAIN, interpolation), (view, view))


def _images(n: int = 6, height: int = 40, width: int = 52) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [8, 32, 96])
def test_each_image_is_cropped_and_resized_as_torchvision_does_it(size: int, interpolation: Interpolation) -> None:
    images = _images()
    views, params, _ = Augment(_crops(size, interpolation), seed=3)(images, range(6), epoch=1)
    for view, drawn in zip(views, params, strict=True):
        assert len(drawn.crop.unique(dim=0)) == 6
        for image, found, (x, y, width, height) in zip(images, view, drawn.crop.tolist(), strict=True):
            expected = F.resized_crop(
                image, y, x, height, width, [size, size], F.InterpolationMode(interpolation), antialias=True
            )
            torch.testing.assert_close(found, expected.clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(40, 52), (61, 33), (32, 32)])
def test_x_is_torchvisions_resize_and_center_crop(height: int, width: int) -> None:
    images = _images(2, height, width)
    found = Augment(_crops(24, resize=30)).center(images)
    transform = v2.Compose([v2.Resize(30, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(24)])
    torch.testing.assert_close(found, transform(images).clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", ["simclr_cifar10", "byol_cifar10"])
def test_views_and_parameters_are_those_of_the_pipeline(policy: str, image_tree: Path) -> None:
    records = open_records(image_tree)
    batch = next(build_pipeline(records, POLICIES[policy], batch_size=24, seed=5, workers=1).epoch(2))
    positions = records.index.searchsorted(batch.index.numpy()).tolist()
    images = [torch.from_numpy(decode_sample(records, position)).permute(2, 0, 1) for position in positions]
    augment = Augment(policy, seed=5)
    found = augment(images, batch.index, epoch=2)
    assert isinstance(found, Augmented)
    levels = 255 * torch.tensor(POLICIES[policy].x.normalize.std)[:, None, None]
    for view, image, params, encoding in zip(batch.views, *found, strict=True):
        for name in ("crop", "flip", "factors", "order", "sigma", "solarize"):
            assert torch.equal(getattr(params, name), getattr(view.params, name)), name
        assert torch.equal(encoding, view.encoding)
        far = ((image - view.image).abs() * levels).flatten(1).quantile(0.99, dim=1)  # solarize may jump at its edge
        assert far.max() < 4
        assert far.median() < 1.1
    assert batch.x is not None
    assert ((augment.center(images) - batch.x).abs() * levels).max() < 1.01


def test_a_view_depends_on_seed_epoch_index_and_image_alone() -> None:
    images, index = (_images() * 255).to(torch.uint8), torch.tensor([7, 3, 900, 12, 5, 0])
    augment = Augment(POLICIES["byol_cifar10"], seed=1)
    whole = augment(images, index, epoch=4)
    some = augment(images[[4, 1]], index[[4, 1]], epoch=4)
    for all_views, few in zip(whole.views, some.views, strict=True):
        torch.testing.assert_close(all_views[[4, 1]], few)
    for other in (
        augment(images, index, epoch=5),
        augment(images, index + 1, epoch=4),
        Augment(POLICIES["byol_cifar10"], seed=2)(images, index, epoch=4),
    ):
        assert not torch.equal(other.params[0].crop, whole.params[0].crop)
    assert not torch.equal(whole.params[0].crop, whole.params[1].crop)


def test_parameters_replay_their_views() -> None:
    images = (_images() * 255).to(torch.uint8)
    augment = Augment("byol_cifar10")
    found = augment(images, range(6), epoch=0)
    assert all(torch.equal(*pair) for pair in zip(augment.replay(images, found.params), found.views, strict=True))
    mirrored = replace(found.params[0], flip=~found.params[0].flip)
    again = augment.replay(images, (mirrored, found.params[1]))
    torch.testing.assert_close(again[0].flip(-1), found.views[0], rtol=0, atol=2e-5)


def test_images_of_one_size_and_several_give_the_same() -> None:
    images = (_images() * 255).to(torch.uint8)
    augment = Augment("simclr_cifar10")
    one, several = augment(images, range(6), 0), augment(list(images), range(6), 0)
    assert all(torch.equal(*pair) for pair in zip(one.views, several.views, strict=True))
    mixed = augment([images[0], images[1, :, :20, :31]], [0, 1], 0)
    torch.testing.assert_close(mixed.views[0][:1], one.views[0][:1])
    assert mixed.params[0].crop[1, 2] <= 31


def test_types_and_layout() -> None:
    images = _images()
    augment = Augment("simclr_cifar10")
    for given, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ):
        views = augment(images.to(given), range(6), 0).views
        assert {view.dtype for view in views} == {expected}
        assert all(
            view.is_contiguous(memory_format=torch.channels_last) and view.shape == (6, 3, 32, 32) for view in views
        )


def test_automatic_mixed_precision_around_it_changes_nothing_and_no_gradient_is_kept() -> None:
    images = _images().float().requires_grad_()
    augment = Augment(_crops(16))
    plain = augment(images, range(6), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = augment(images, range(6), 0)
    assert torch.equal(plain.views[0], mixed.views[0])
    assert not plain.views[0].requires_grad


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.int64), [torch.zeros(8, 8, 3)]],
    ids=["gray", "no batch", "integers", "channels last"],
)
def test_images_of_another_form_are_refused(images: Tensor | list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"images: uint8 or float \(N,3,H,W\), or several \(3,H,W\), are wanted, not "):
        Augment("simclr_cifar10")(images, range(len(images)), 0)


def test_wrong_use_is_said() -> None:
    with pytest.raises(ValueError, match=r"policy='simclr_cifar': no such policy \(did you mean simclr_cifar10\?\)"):
        Augment("simclr_cifar")
    with pytest.raises(ValueError, match="one or more are wanted"):
        Augment("simclr_cifar10")([], [], 0)
    with pytest.raises(ValueError, match=r"size has shape \(6, 2\); \(2, 2\) is wanted"):
        Augment("simclr_cifar10")(_images(), [0, 1], 0)
