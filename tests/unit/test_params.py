"""Draws: the paper's golden encodings, the official statistics, torchvision's distribution, and the keys."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from equimod.pipelines import philox
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.params import AugmentationParams, ParamLayout, Standardizer, draw
from equimod.pipelines.policy import (
    POLICIES,
    AugmentationPolicy,
    GaussianBlur,
    RandomResizedCrop,
    one_by_one,
)
from equimod.pipelines.records import open_records


def _params(**values: object) -> AugmentationParams:
    default = {
        "crop": [[0, 0, 1, 1]],
        "flip": [False],
        "jitter": [False],
        "gray": [False],
        "blur": [False],
        "solarize": [False],
        "factors": [[1.0, 1.0, 1.0, 0.0]],
        "order": [[0, 1, 2, 3]],
        "sigma": [0.0],
    }
    return AugmentationParams(**{name: torch.tensor(value) for name, value in (default | values).items()})


def test_byol_imagenet_encoding_is_the_papers_first_example() -> None:
    params = _params(
        crop=[[12, 9, 120, 96]],
        jitter=[True],
        gray=[True],
        factors=[[1.13, 1.0, 0.84, -0.09]],
        order=[[3, 1, 2, 0]],
    )
    golden = [0, 1, 1, 0, 0, 12, 9, 120, 96, 1.13, 1, 0.84, -0.09, 3, 1, 2, 0, 0]
    for view in POLICIES["byol_imagenet"].views:
        torch.testing.assert_close(ParamLayout.of(view).encode(params), torch.tensor([golden]), rtol=0, atol=1e-7)


def test_simclr_cifar10_encoding_is_the_papers_second_example() -> None:
    params = _params(crop=[[1, 2, 24, 27]], flip=[True])
    golden = [1, 0, 0, 1, 2, 24, 27, 1, 1, 1, 0, 0, 1, 2, 3]
    assert ParamLayout.of(POLICIES["simclr_cifar10"].views[0]).encode(params).tolist() == [golden]


@pytest.mark.parametrize(
    ("policy", "length"),
    [("simclr_cifar10", 15), ("simclr_imagenet", 17), ("byol_imagenet", 18), ("byol_cifar10", 18)],
)
def test_encoding_has_the_papers_length(policy: str, length: int) -> None:
    layout = ParamLayout.shared(POLICIES[policy])
    assert len(layout) == length
    size = np.full((3, 2), 64)
    params = draw(POLICIES[policy].views[0], size, np.arange(3), seed=0, epoch=0, view=0)
    assert layout.encode(params).shape == (3, length)
    assert layout.encode(params).dtype == torch.float32


def _statistics(policy: str, sizes: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    standardizer = Standardizer.fit(POLICIES[policy], sizes)
    names = ParamLayout.shared(POLICIES[policy]).names
    return tuple(dict(zip(names, t.tolist(), strict=True)) for t in (standardizer.mean, standardizer.std))


def test_cifar10_statistics_are_the_official_ones() -> None:
    mean, std = _statistics("simclr_cifar10", np.full((1000, 2), 32))
    official = {  # mean and deviation, constants of the official code
        "crop_x": (4.32, 3.99),
        "crop_y": (4.31, 3.97),
        "crop_width": (23.37, 4.95),
        "crop_height": (23.37, 4.95),
        "jitter": (0.80, 0.40),
        "order_0": (1.20, 1.17),
        "order_1": (1.40, 1.02),
        "order_2": (1.60, 1.02),
        "order_3": (1.80, 1.17),
        "brightness": (1.0, 0.207),
        "contrast": (1.0, 0.207),
        "hue": (0.0, 0.052),
        "gray": (0.20, 0.40),
        "flip": (0.5, 0.5),
    }
    for name, (official_mean, official_std) in official.items():
        assert mean[name] == pytest.approx(official_mean, abs=0.03), name
        assert std[name] == pytest.approx(official_std, abs=0.03), name


def test_imagenet_statistics_are_near_the_official_ones(imagenet_sample_sizes: np.ndarray) -> None:
    """The official constants were measured on all of ImageNet; 334 images of it have a few percent other sizes."""
    mean, std = _statistics("simclr_imagenet", imagenet_sample_sizes)
    for name, (official_mean, official_std) in {
        "crop_y": (68.2, 77.4),
        "crop_x": (99.2, 98.7),
        "crop_height": (269.3, 136.9),
        "crop_width": (274.6, 143.5),
    }.items():
        assert mean[name] == pytest.approx(official_mean, rel=0.12), name
        assert std[name] == pytest.approx(official_std, rel=0.25), name
    assert (mean["blur"], mean["sigma"], std["sigma"]) == pytest.approx((0.5, 0.525, 0.653), abs=0.01)
    assert (std["brightness"], std["contrast"], std["hue"]) == pytest.approx((0.413, 0.413, 0.103), abs=0.005)


def test_byol_statistics_are_those_of_its_own_policy() -> None:
    mean, std = _statistics("byol_imagenet", np.array([[500, 375]]))
    assert (mean["blur"], std["blur"]) == pytest.approx((0.550, 0.498), abs=0.005)
    assert (mean["solarize"], std["solarize"]) == pytest.approx((0.101, 0.301), abs=0.005)


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (40, 300), (1000, 90)])
def test_boxes_have_torchvisions_distribution(size: tuple[int, int]) -> None:
    """Two-sample Kolmogorov-Smirnov on x, y, width, height; the last two sizes often fall back to the central box."""
    n = 4000
    crop = RandomResizedCrop(32, (0.08, 1.0))
    policy = replace(POLICIES["simclr_cifar10"].views[0], crop=crop)
    ours = draw(policy, np.tile(size, (n, 1)), np.arange(n), seed=3, epoch=0, view=0).crop.numpy()
    torch.manual_seed(0)
    image = torch.empty(3, size[1], size[0])
    theirs = np.array([TorchvisionCrop.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(n)])
    for column, name in ((1, "x"), (0, "y"), (3, "width"), (2, "height")):
        p = stats.ks_2samp(ours[:, ("x", "y", "width", "height").index(name)], theirs[:, column]).pvalue
        assert p > 1e-3, f"{name}: p={p}"


def _torchvision_box(size: tuple[int, int], crop: RandomResizedCrop, u: np.ndarray) -> list[int]:
    """torchvision's documented algorithm, written out for one image, on given uniform numbers."""
    width, height = size
    for attempt in range(10):
        area = width * height * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u[2 * attempt])
        low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
        aspect = math.exp(low + (high - low) * u[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(u[20] * (width - w + 1)), int(u[21] * (height - h + 1)), w, h]
    if width / height < crop.ratio[0]:
        w, h = width, round(width / crop.ratio[0])
    elif width / height > crop.ratio[1]:
        w, h = round(height * crop.ratio[1]), height
    else:
        w, h = width, height
    return [(width - w) // 2, (height - h) // 2, w, h]


def test_boxes_equal_the_algorithm_written_out_for_one_image() -> None:
    rng = np.random.default_rng(0)
    size = np.stack([rng.integers(1, 700, 600), rng.integers(1, 700, 600)], 1)
    view = POLICIES["simclr_imagenet"].views[0]
    boxes = draw(view, size, np.arange(600), seed=11, epoch=4, view=1).crop
    u = philox.uniform(11, np.arange(600), epoch=4, stream=1, blocks=9)
    assert boxes.tolist() == [_torchvision_box((int(w), int(h)), view.crop, u[k]) for k, (w, h) in enumerate(size)]


def test_jitter_order_is_uniform_over_the_24_permutations() -> None:
    n = 24_000
    view = POLICIES["simclr_cifar10"].views[0]
    params = draw(view, np.full((n, 2), 32), np.arange(n), seed=0, epoch=0, view=0)
    _, counts = params.order[params.jitter].unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_what_is_not_drawn_holds_the_papers_default() -> None:
    view = POLICIES["simclr_imagenet"].views[0]
    params = draw(view, np.full((500, 2), 300), np.arange(500), seed=0, epoch=0, view=0)
    off = ~params.jitter
    assert off.any()
    assert params.factors[off].unique(dim=0).tolist() == [[1, 1, 1, 0]]
    assert params.order[off].unique(dim=0).tolist() == [[0, 1, 2, 3]]
    assert params.sigma[~params.blur].unique().tolist() == [0]
    assert params.sigma[params.blur].min() >= 0.1


def _equal(a: AugmentationParams, b: AugmentationParams) -> bool:
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def test_a_draw_depends_on_its_keys_alone_and_not_on_its_batch() -> None:
    view = POLICIES["byol_imagenet"].views[1]
    size = np.random.default_rng(0).integers(50, 500, (64, 2))
    index = np.random.default_rng(1).permutation(64)
    whole = draw(view, size, index, seed=2, epoch=3, view=1)
    for rows in (slice(0, 1), slice(10, 30)):
        assert _equal(whole[rows], draw(view, size[rows], index[rows], seed=2, epoch=3, view=1))


@pytest.mark.parametrize("change", [{"seed": 3}, {"epoch": 4}, {"view": 0}])
def test_every_key_changes_the_draw(change: dict[str, int]) -> None:
    view, size = POLICIES["simclr_cifar10"].views[0], np.full((50, 2), 32)
    keys = {"seed": 2, "epoch": 3, "view": 1}
    draws = [draw(view, size, np.arange(50), **k) for k in (keys, keys | change)]
    assert (draws[0].crop != draws[1].crop).any(1).float().mean() > 0.9


def test_adding_an_operator_moves_no_other_draw() -> None:
    without = POLICIES["simclr_cifar10"].views[0]
    size = np.full((50, 2), 32)
    a, b = (
        draw(view, size, np.arange(50), seed=0, epoch=0, view=0)
        for view in (without, replace(without, blur=GaussianBlur(3, 0.5)))
    )
    assert torch.equal(a.crop, b.crop)
    assert torch.equal(a.factors, b.factors)
    assert b.blur.any()


def test_views_with_different_operators_cannot_share_an_encoding() -> None:
    policy = POLICIES["byol_imagenet"]
    mixed = AugmentationPolicy(policy.x, (policy.views[0], replace(policy.views[1], blur=None)))
    with pytest.raises(ValueError, match="probability 0"):
        ParamLayout.shared(mixed)


@pytest.mark.parametrize(("size", "index"), [(np.ones((3, 2)), [0, 1]), (np.zeros((1, 2)), [0])])
def test_draw_refuses_sizes_that_do_not_fit(size: np.ndarray, index: list[int]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        draw(POLICIES["simclr_cifar10"].views[0], size, index, seed=0, epoch=0, view=0)


def test_standardizer_centres_what_never_varies() -> None:
    standardize = Standardizer([1.0, 5.0], [2.0, 0.0])
    assert standardize(torch.tensor([[3.0, 5.0]])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("policy", ["simclr_cifar10", "byol_imagenet"])
def test_one_operator_at_a_time_is_always_drawn_and_no_other_ever(policy: str) -> None:
    n, size = 50, [[500, 375]] * 50
    views = one_by_one(POLICIES[policy])
    assert list(views) == ["crop", *ParamLayout.of(POLICIES[policy].views[0]).flags, "identity"]
    shown = {}
    for operator, view in views.items():
        params = draw(view, size, range(n), seed=0, epoch=0, view=0)
        shown[operator] = len(params.crop.unique(dim=0))
        for flag in ("flip", "jitter", "gray", "blur", "solarize"):
            assert getattr(params, flag).all() == getattr(params, flag).any() == (flag == operator)
        assert ParamLayout.of(view) == ParamLayout.of(POLICIES[policy].views[0])
    assert shown.pop("crop") == n
    assert set(shown.values()) == {1}


@pytest.mark.parametrize(
    ("policy", "size", "box"),
    [
        ("simclr_cifar10", (32, 32), [0, 0, 32, 32]),
        ("simclr_cifar10", (40, 32), [4, 0, 32, 32]),
        ("simclr_imagenet", (256, 256), [16, 16, 224, 224]),
        ("simclr_imagenet", (500, 375), [85, 23, 328, 329]),
        ("simclr_imagenet", (1, 3), [0, 1, 1, 1]),
    ],
)
def test_the_crop_of_x_is_the_box_that_x_shows(policy: str, size: tuple[int, int], box: list[int]) -> None:
    view = one_by_one(POLICIES[policy])["flip"]
    assert draw(view, [size], [0], seed=0, epoch=0, view=0).crop.tolist() == [box]


def test_a_view_with_the_crop_of_x_and_no_operator_is_x(imagenet_sample: Path) -> None:
    records = open_records(imagenet_sample)
    policy = POLICIES["simclr_imagenet"]
    nothing = one_by_one(policy)["identity"]
    batch = next(build_pipeline(records, AugmentationPolicy(policy.x, (nothing,)), batch_size=32, seed=0).epoch(0))
    assert batch.x is not None
    # A box of whole pixels is off by half a pixel of the original at most, which is less than one of x.
    difference = (batch.views[0].image - batch.x).abs().mean((1, 2, 3))
    shifted = (batch.x[..., 1:] - batch.x[..., :-1]).abs().mean((1, 2, 3))
    assert (difference / shifted).max() < 1
