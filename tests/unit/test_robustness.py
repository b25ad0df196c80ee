"""Corruptions are the package's, drawn for each image alone; what is measured under them is as worked by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs
from torch import Tensor

from equimod.models.encoder import build_encoder
from equimod.models.settings import EncoderSettings
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy, Normalize
from equimod.pipelines.records import open_records
from equimod.train.config import ConfigError
from equimod.train.evaluation import robustness
from equimod.train.evaluation.features import FrozenEncoder
from equimod.train.evaluation.robustness import CORRUPTIONS, STRENGTHS, Corruption, Pixels, corrupt, measure

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_depends_on_its_key_alone(name: str) -> None:
    needs("robustness")
    first = corrupt(IMAGE, name, 3, (0, 7))
    np.random.random(5)  # noqa: NPY002  # moves the generator that the package draws from
    assert np.array_equal(corrupt(IMAGE, name, 3, (0, 7)), first)
    assert first.shape == IMAGE.shape
    assert not np.array_equal(first, IMAGE)
    assert not np.array_equal(corrupt(IMAGE, name, 5, (0, 7)), first)
    drawn = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"}
    others = [corrupt(IMAGE, name, 3, key) for key in ((0, 8), (1, 7))]
    assert all(np.array_equal(other, first) != (name in drawn | {"elastic_transform"}) for other in others)


@pytest.mark.parametrize("name", ["brightness", "contrast", "defocus_blur", "pixelate", "jpeg_compression"])
def test_a_corruption_is_that_of_the_package(name: str) -> None:
    needs("robustness")
    from imagecorruptions import corrupt as theirs

    for strength in STRENGTHS:
        assert np.array_equal(corrupt(IMAGE, name, strength, (0, 0)), theirs(IMAGE, strength, name))


def test_scores_are_those_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images of class 0. All corruptions have all right but fog, which has as many wrong as its strength, and
    frost, which has all wrong at every second strength."""

    def corrupted(pixels: Pixels, *others: object) -> Iterator[tuple[Corruption, Pixels]]:
        for name in CORRUPTIONS:
            for strength in STRENGTHS:
                images = np.zeros_like(pixels)
                if name == "fog":
                    images[: min(strength, 4)] = 1
                elif name == "frost":
                    images[:] = strength % 2
                yield (name, strength), images

    def logits(pixels: Pixels) -> Tensor:
        wrong = torch.from_numpy(pixels[:, 0, 0, 0].astype(np.float64))
        return torch.stack([1 - wrong, wrong], dim=1)

    monkeypatch.setattr(robustness, "corrupted", corrupted)
    pixels, index = np.zeros((4, 2, 2, 3), np.uint8), np.arange(4)
    found = dict(measure(logits, pixels, index, torch.zeros(4, dtype=torch.int64), seed=0))
    assert found.pop("robustness_clean_top1") == 100
    assert found.pop("robustness_fog_top1") == pytest.approx((75 + 50 + 25 + 0 + 0) / 5)
    assert found.pop("robustness_frost_top1") == pytest.approx(40)
    assert found.pop("robustness_top1") == pytest.approx((13 * 100 + 30 + 40) / 15)
    # Of 75 steps four of fog change one image in four, and five of frost all.
    assert found.pop("robustness_flip_rate_top1") == pytest.approx((4 * 25 + 5 * 100) / 75)
    assert set(found.values()) == {100}


def test_images_without_a_corruption_are_encoded_as_the_pipeline_has_them(image_tree: Path) -> None:
    torch.manual_seed(0)
    encoder, policy = FrozenEncoder(build_encoder(EncoderSettings("resnet10", width=8)), None), POLICIES["byol_cifar10"]
    records = open_records(image_tree)
    pixels = robustness.images_of(records, policy.x, 1)
    pipeline = build_pipeline(records, AugmentationPolicy(policy.x, ()), batch_size=24, seed=0, shuffle=False)
    expected = encoder(next(pipeline.epoch(0)).images)
    torch.testing.assert_close(robustness.encode(encoder, pixels, policy.x.normalize), expected, rtol=1e-4, atol=1e-5)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match="--robustness needs images of 32 pixels or more, and the encoder takes 24"):
        robustness.require_corruptions(CenterPolicy(24, 24, Normalize((0.5,) * 3, (0.5,) * 3)))


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ConfigError, match=r"pip install 'equimod\[robustness\]'"):
        robustness.require_corruptions(POLICIES["byol_cifar10"].x)
