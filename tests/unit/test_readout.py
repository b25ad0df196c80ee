"""The linear read-out of parameters, against numpy's least squares and where the answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from equimod.models.encoder import build_encoder
from equimod.models.settings import EncoderSettings
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.params import draw
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.train.evaluation import readout, ridge
from equimod.train.evaluation.features import FrozenEncoder, ViewSet

POLICY = POLICIES["simclr_cifar10"]


def _moments(features: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    rows = np.concatenate([np.ones((len(features), 1)), features, targets], axis=1)
    return torch.from_numpy(rows.T @ rows / len(rows))


def _reference(features: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Ridge on standardised features as least squares with the penalty as more rows; its predictions on `test`."""
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 0, std, np.inf)
    penalty = np.sqrt(readout.RIDGE * len(features)) * np.eye(features.shape[1])
    a = np.concatenate([(features - mean) / std, penalty])
    b = np.concatenate([targets - targets.mean(0), np.zeros((features.shape[1], targets.shape[1]))])
    solved: np.ndarray = np.linalg.lstsq(a, b, rcond=None)[0]
    predicted: np.ndarray = (test - mean) / std @ solved + targets.mean(0)
    return predicted


def test_weights_and_r2_equal_least_squares_with_a_penalty() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (60, 5)) * [1, 10, 0.1, 1, 0] + 7  # the last never varies
    targets = features[:, :4] @ rng.normal(size=(4, 3)) + rng.normal(0, 3, (60, 3))
    train, test = slice(0, 40), slice(40, 60)
    predicted = _reference(features[train], targets[train], features[test])
    expected = 1 - ((targets[test] - predicted) ** 2).sum(0) / ((targets[test] - targets[test].mean(0)) ** 2).sum(0)
    weights = ridge.fit(_moments(features[train], targets[train]), features=5, ridge=readout.RIDGE)
    bias, slope = weights.numpy()[0], weights.numpy()[1:]
    np.testing.assert_allclose(features[test] @ slope + bias, predicted, rtol=1e-8)
    np.testing.assert_allclose(ridge.r2(weights, _moments(features[test], targets[test])), expected, rtol=1e-8)


def test_what_is_linear_in_the_features_is_recovered_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3))
    targets = np.stack([features @ [1, 2, 3] + 5, rng.normal(size=4000), np.full(4000, 0.1)], axis=1)
    moments = _moments(features, targets)
    linear, noise, constant = ridge.r2(ridge.fit(moments, features=3, ridge=readout.RIDGE), moments).tolist()
    assert linear == pytest.approx(1, abs=1e-5)
    assert abs(noise) < 0.01
    assert math.isnan(constant)


def test_targets_are_shares_of_the_image_and_what_was_drawn() -> None:
    size = torch.tensor([[100, 50], [40, 80]])
    params = draw(POLICIES["byol_cifar10"].views[1], size, [0, 1], seed=3, epoch=0, view=1)
    targets = readout.targets(params, size)
    np.testing.assert_array_equal(targets[:, 0] * size[:, 0], params.crop[:, 0])
    np.testing.assert_array_equal(targets[:, 3] * size[:, 1], params.crop[:, 3])
    np.testing.assert_array_equal(targets[:, 4:8], params.factors)
    assert targets[:, 8:].tolist() == [
        [float(params.flip[i]), float(params.gray[i]), float(params.sigma[i]), float(params.solarize[i])]
        for i in (0, 1)
    ]


def test_scores_of_an_encoder_equal_a_computation_by_hand(image_tree: Path) -> None:
    torch.manual_seed(0)
    encoder = FrozenEncoder(build_encoder(EncoderSettings(arch="resnet10", width=8)), None)
    records = open_records(image_tree)
    found = dict(readout.measure(*[ViewSet(encoder, records, POLICY)] * 2))
    assert list(found) == [f"readout_r2_{operator}" for operator in ("crop", "jitter", "flip", "gray")]

    (batch,) = build_pipeline(records, POLICY, batch_size=len(records), seed=0, shuffle=False).epoch(0)
    h_x = encoder(batch.x)
    features = torch.cat([torch.cat([h_x, encoder(view.image)], dim=1) for view in batch.views]).double().numpy()
    crop = torch.cat([view.params.crop for view in batch.views]).numpy() / np.tile(records.size, (2, 2))
    predicted = _reference(features, crop, features)
    r2 = 1 - ((crop - predicted) ** 2).mean(0) / crop.var(0)
    assert found["readout_r2_crop"] == pytest.approx(r2.mean(), abs=1e-6)
