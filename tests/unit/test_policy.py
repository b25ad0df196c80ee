"""What a policy cannot hold is refused when it is made, with the value and what to give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from equimod.pipelines.params import Standardizer, draw
from equimod.pipelines.policy import (
    POLICIES,
    CenterPolicy,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    RandomResizedCrop,
    Solarize,
)

NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (HorizontalFlip, {"p": 1.5}, "HorizontalFlip: p=1.5 is no probability"),
        (Grayscale, {"p": -0.1}, "Grayscale: p=-0.1 is no probability"),
        (Solarize, {"p": 2.0}, "Solarize: p=2.0 is no probability"),
        (RandomResizedCrop, {"size": 0}, "size=0 pixels; give 1 or more"),
        (RandomResizedCrop, {"size": 8, "scale": (0.5, 0.2)}, "give 0 < smallest <= largest <= 1"),
        (RandomResizedCrop, {"size": 8, "scale": (0.5, 1.2)}, "give 0 < smallest <= largest <= 1"),
        (RandomResizedCrop, {"size": 8, "ratio": (0.0, 1.0)}, "give 0 < smallest <= largest"),
        (ColorJitter, {"brightness": -1, "contrast": 0, "saturation": 0, "hue": 0}, "strengths must be 0 or more"),
        (ColorJitter, {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.6}, "hue at most 0.5"),
        (GaussianBlur, {"kernel_size": 4, "p": 1.0}, "kernel_size=4; give an odd number of pixels"),
        (GaussianBlur, {"kernel_size": 3, "p": 1.0, "sigma": (0.0, 1.0)}, "give 0 < smallest <= largest"),
        (CenterPolicy, {"size": 9, "resize": 8, "normalize": NORMALIZE}, "give 1 <= size <= resize"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_x_and_views_share_one_size() -> None:
    policy = POLICIES["simclr_cifar10"]
    with pytest.raises(ValueError, match=r"must share one size, not \[32, 64\] pixels"):
        replace(policy, x=replace(policy.x, size=64, resize=64))


def test_parameters_of_another_shape_are_refused() -> None:
    params = draw(POLICIES["simclr_cifar10"].views[0], [[32, 32]] * 3, [0, 1, 2], seed=0, epoch=0, view=0)
    with pytest.raises(ValueError, match=r"AugmentationParams\.sigma has shape \(2,\); \(3,\) is wanted"):
        replace(params, sigma=params.sigma[:2])


def test_statistics_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean \(2,\) and std \(3,\) must both be"):
        Standardizer(torch.zeros(2), torch.ones(3))
