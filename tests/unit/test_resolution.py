"""Images that grow over the epochs: only their size changes, and everything drawn stays what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equimod.pipelines import ops
from equimod.pipelines.batch import Batch
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.policy import POLICIES, GaussianBlur
from equimod.pipelines.records import open_records
from equimod.pipelines.resolution import Resolution
from equimod.pipelines.sampler import Cursor
from equimod.train.config import default_recipe, read_recipe
from equimod.train.config.settings import ResolutionSettings

POLICY = POLICIES["byol_cifar10"]
GROWS = Resolution((16, 24, 32), rising=4)


def _pipeline(tree: Path, resolution: Resolution | None = GROWS, **settings: int) -> Pipeline:
    return build_pipeline(open_records(tree), POLICY, batch_size=8, seed=3, resolution=resolution, **settings)


def _same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and all(map(torch.equal, a.encodings, b.encodings))


@pytest.mark.parametrize(
    ("sizes", "rising", "expected"),
    [
        ((224,), 0, [224] * 4),
        ((16, 24, 32), 4, [16, 16, 24, 24, 32, 32]),
        ((16, 24, 32), 3, [16, 16, 24, 32, 32]),
        ((128, 160, 192, 224), 2, [128, 160, 224, 224]),
    ],
)
def test_smaller_sizes_have_equal_shares_of_the_first_epochs(
    sizes: tuple[int, ...], rising: int, expected: list[int]
) -> None:
    resolution = Resolution(sizes, rising)
    assert [resolution.at(epoch) for epoch in range(len(expected))] == expected


def test_the_recipes_grow_by_the_stride_of_the_encoder() -> None:
    recipe = default_recipe("simclr", "imagenet", equimod=True)
    assert recipe is not None
    resolution = read_recipe(recipe.with_stem(f"{recipe.stem}_fast")).resolution_by_epoch()
    assert resolution == Resolution((128, 160, 192, 224), rising=480)
    recipe = default_recipe("simclr", "cifar10", equimod=False)
    assert recipe is not None
    small = replace(read_recipe(recipe), resolution=ResolutionSettings(16, until=0.1))
    assert small.resolution_by_epoch() == Resolution((16, 24, 32), rising=80)
    assert replace(small, resolution=ResolutionSettings()).resolution_by_epoch() == Resolution((32,))


def test_another_size_changes_nothing_that_is_drawn(image_tree: Path) -> None:
    """Boxes are in pixels of the original image, sigmas in those of the policy's size."""
    grown = list(_pipeline(image_tree).epochs(Cursor(0, 0), 6))
    fixed = list(_pipeline(image_tree, None).epochs(Cursor(0, 0), 6))
    assert [batch.images.shape[-1] for batch in grown[::3]] == [16, 16, 24, 24, 32, 32]
    for a, b in zip(grown, fixed, strict=True):
        assert torch.equal(a.index, b.index)
        assert all(map(torch.equal, a.encodings, b.encodings))
        assert all(torch.equal(p.sigma, q.sigma) for p, q in zip(a.params, b.params, strict=True))
    assert all(map(_same, grown[12:], fixed[12:]))


def test_a_view_in_half_the_size_is_the_same_one(image_tree: Path) -> None:
    """Box, flip, colours and a blur that reaches half as many pixels."""
    policy = POLICIES["byol_imagenet"]
    sizes = Resolution((112, 224), rising=1)
    small, large = (
        next(build_pipeline(open_records(image_tree), policy, batch_size=8, seed=3, resolution=sizes).epoch(epoch))
        for epoch in (0, 1)
    )
    again = build_pipeline(open_records(image_tree), policy, batch_size=8, seed=3)
    for batch, same in ((small, next(again.epoch(0))), (large, next(again.epoch(1)))):
        shrunk = torch.nn.functional.interpolate(same.images, batch.images.shape[-1], mode="area")
        assert (batch.images - shrunk).abs().mean() < 0.03


def test_a_policy_at_half_its_size() -> None:
    policy = POLICIES["byol_imagenet"]
    half = policy.at(112)
    assert (half.x.size, half.x.resize) == (112, 128)
    assert [view.crop.size for view in half.views] == [112, 112]
    assert half.views[0].blur == GaussianBlur(13, 1.0, (0.05, 1.0))
    assert policy.at(224) == policy


def test_operators_blur_with_the_sigma_of_the_smaller_image(image_tree: Path) -> None:
    pipeline = _pipeline(image_tree)
    batch, decoded = next(pipeline.epoch(0)), next(pipeline.decoded(0))
    for view, raw, policy in zip(batch.views, decoded.views, POLICY.at(16).views, strict=True):
        params = replace(view.params, sigma=view.params.sigma / 2)
        torch.testing.assert_close(view.image, ops.apply(raw.image, params, policy), rtol=0, atol=0)


@pytest.mark.parametrize("start", [Cursor(1, 2), Cursor(3, 1), Cursor(4, 0)])
def test_a_run_that_goes_on_in_the_middle_sees_what_it_would_have_seen(image_tree: Path, start: Cursor) -> None:
    whole = list(_pipeline(image_tree).epochs(Cursor(0, 0), 5))
    resumed = list(_pipeline(image_tree).epochs(start, 5))
    assert len(resumed) == len(whole) - 3 * start.epoch - start.step
    assert all(map(_same, whole[-len(resumed) :], resumed))


def test_a_resolution_that_is_not_the_policys_is_refused(image_tree: Path) -> None:
    with pytest.raises(ValueError, match="resolution ends at 24 pixels, the policy's images have 32"):
        _pipeline(image_tree, Resolution((16, 24), rising=1))
