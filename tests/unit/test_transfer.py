"""Logistic regression beside scikit-learn's, and its penalty chosen as by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from equimod.train.evaluation.features import Features
from equimod.train.evaluation.transfer import TransferSettings, fit, logits, measure

CLASSES = tuple("abc")


def _features(images: int, seed: int, noise: float) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (images,), generator=generator)
    h = torch.eye(3, 6, dtype=torch.float64)[label] * torch.tensor([5.0, 1, 1, 1, 1, 1])
    return Features(h + noise * torch.randn(h.shape, dtype=h.dtype, generator=generator), label, CLASSES)


def _oracle(train: Features, penalty: float) -> LogisticRegression:
    """scikit-learn sums over the images, and weighs that by C."""
    model = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-12, max_iter=10_000)
    return model.fit(train.h.numpy(), train.label.numpy())


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_weights_are_those_of_scikit_learn(penalty: float) -> None:
    train = _features(90, seed=0, noise=1.0)
    weights = fit(train, penalty, torch.zeros(7, 3, dtype=torch.float64), 2000).numpy()
    oracle, near = _oracle(train, penalty), {"rtol": 0, "atol": 1e-5 + 1e-7 / penalty}
    np.testing.assert_allclose(weights[1:], oracle.coef_.T, **near)
    np.testing.assert_allclose(weights[0] - weights[0].mean(), oracle.intercept_ - oracle.intercept_.mean(), **near)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_the_penalty_that_is_best_on_every_fifth_image_is_taken(noise: float) -> None:
    train, val = _features(100, 1, noise), _features(80, 2, noise)
    settings = TransferSettings(penalties=12)
    held = np.arange(100) % 5 == 0
    fitted = Features(train.h[~held], train.label[~held], CLASSES)
    penalties = np.geomspace(1e5, 1e-6, 12)
    scores = [_oracle(fitted, p).score(train.h[held].numpy(), train.label[held].numpy()) for p in penalties]
    best = penalties[int(np.argmax(scores))]
    oracle = _oracle(train, best).predict(val.h.numpy())
    hits = oracle == val.label.numpy()
    expected = {
        "transfer_top1": 100 * hits.mean(),
        "transfer_per_class_top1": 100 * np.mean([hits[val.label.numpy() == c].mean() for c in range(3)]),
        "transfer_penalty": best,
    }
    assert dict(measure(train, val, settings)) == pytest.approx(expected)


def test_a_class_without_validation_images_does_not_count() -> None:
    train, val = _features(60, 1, 0.01), _features(60, 2, 0.01)
    some = Features(val.h[val.label != 2], val.label[val.label != 2], CLASSES)
    assert dict(measure(train, some, TransferSettings(penalties=3)))["transfer_per_class_top1"] == 100.0


def test_logits_are_linear_in_the_representations() -> None:
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert logits(torch.tensor([[10.0]]), weights).tolist() == [[31.0, 42.0]]
