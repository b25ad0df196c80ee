"""Effective ranks of representations that are known, and beside the papers' formulas in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from equimod.models.encoder import build_encoder
from equimod.models.settings import EncoderSettings
from equimod.pipelines.policy import POLICIES, AugmentationPolicy
from equimod.pipelines.records import open_records
from equimod.train.evaluation import rank
from equimod.train.evaluation.features import FrozenEncoder, ViewSet
from equimod.train.evaluation.rank import RankSettings, lidar, lidar_of, rankme

POLICY = POLICIES["simclr_cifar10"]


def test_rankme_counts_the_directions_that_are_used_alike() -> None:
    directions = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    for used in (1, 5, 16):
        h = directions[:, :used] @ directions[:used]
        assert rankme(h) == pytest.approx(used, abs=1e-3)
        assert rankme(100 * h) == pytest.approx(used, abs=1e-3)


def test_rankme_is_the_papers_formula() -> None:
    h = np.random.default_rng(0).normal(size=(40, 9)) * np.geomspace(1, 100, 9)
    values = np.sqrt(np.linalg.eigvalsh(h.T @ h))
    share = values / values.sum() + 1e-7
    assert rankme(torch.from_numpy(h)) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-9)


def test_lidar_is_the_papers_formula() -> None:
    rng = np.random.default_rng(1)
    h = rng.normal(size=(30, 1, 6)) * np.geomspace(1, 10, 6) + rng.normal(size=(30, 8, 6))
    mean = h.mean(1)
    between = np.cov(mean.T, bias=True)
    within = np.mean([np.cov(views.T, bias=True) for views in h], axis=0) + 1e-4 * np.eye(6)
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real  # of W^-1/2 B W^-1/2 too
    share = values / values.sum() + 1e-7
    found = lidar(torch.from_numpy(h), 1e-4)
    assert found == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-9)


def test_lidar_discounts_what_augmentations_change() -> None:
    """Two directions tell the images apart, four tell views of an image apart, and RankMe takes all six."""
    generator = torch.Generator().manual_seed(0)
    of_image = torch.randn(200, 1, 2, generator=generator).expand(200, 20, 2)
    of_view = torch.randn(200, 20, 4, generator=generator)
    noise = 0.1 * torch.randn(200, 20, 2, generator=generator)
    h = torch.cat([of_image + noise, of_view], dim=2)
    assert lidar(h, 1e-4) < 2.1
    assert rankme(h.flatten(0, 1)) > 5.5


@pytest.mark.parametrize("images", [10, 1000])
def test_views_are_those_of_images_spread_over_the_records(
    images: int, image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank, "_BATCH_SIZE", 4)
    torch.manual_seed(0)
    encoder = FrozenEncoder(build_encoder(EncoderSettings("resnet10", width=8)), None)
    records = open_records(image_tree)
    found = lidar_of(ViewSet(encoder, records, POLICY), RankSettings(images, lidar_views=3))
    three = AugmentationPolicy(POLICY.x, (*POLICY.views, POLICY.views[0]))
    ((_, _, h),) = ViewSet(encoder, records, three).represent("all", batch_size=24)
    rows = np.arange(min(images, 24)) * 24 // min(images, 24)
    assert found == pytest.approx(lidar(torch.stack(h, dim=1)[rows], 1e-4), rel=1e-4)
