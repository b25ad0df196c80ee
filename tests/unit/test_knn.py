"""The nearest-neighbour classifier against a reference in loops, and top-k accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equimod.train.evaluation import knn
from equimod.train.evaluation.features import Features, top_k
from equimod.train.evaluation.knn import KnnSettings

CLASSES = 7


def _features(samples: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(samples, 16, generator=generator)
    return Features(h, torch.randint(CLASSES, (samples,), generator=generator), tuple("abcdefg"))


def _reference(train: Features, val: Features, k: int, temperature: float) -> np.ndarray:
    scores = np.zeros((len(val), CLASSES))
    bank = train.h.double().numpy()
    for row, query in enumerate(val.h.double().numpy()):
        similarity = [float(query @ b / math.sqrt((query @ query) * (b @ b))) for b in bank]
        nearest = sorted(range(len(bank)), key=lambda n: -similarity[n])[:k]
        for neighbour in nearest:
            scores[row, int(train.label[neighbour])] += math.exp(similarity[neighbour] / temperature)
    return scores


@pytest.mark.parametrize("bank", [7, 32, 90, 1000])
@pytest.mark.parametrize(("k", "queries"), [(20, 300), (1, 10), (200, 10)])
def test_votes_equal_a_reference_in_loops(k: int, queries: int, bank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BANK", bank)
    train, val = _features(90, seed=0), _features(queries, seed=1)
    scores = knn.votes(train, val.h, KnnSettings(k=k)).numpy()
    np.testing.assert_allclose(scores, _reference(train, val, k, 0.07), rtol=1e-4)


def test_classification_gives_the_accuracy_of_the_reference() -> None:
    train, val = _features(90, seed=0), _features(40, seed=1)
    ranking = np.argsort(-_reference(train, val, 20, 0.07), axis=1, kind="stable")
    hits = ranking == val.label.numpy()[:, None]
    expected = {"knn_top1": 100 * hits[:, :1].any(1).mean(), "knn_top5": 100 * hits[:, :5].any(1).mean()}
    assert dict(knn.classify(train, val, KnnSettings(k=20))) == pytest.approx(expected)


def test_images_find_themselves() -> None:
    train = _features(50, seed=0)
    assert dict(knn.classify(train, train, KnnSettings(k=1)))["knn_top1"] == 100.0


def test_the_settings_are_those_of_wu_et_al() -> None:
    assert KnnSettings() == KnnSettings(k=200, temperature=0.07)


def test_constant_scores_are_worth_chance() -> None:
    label = torch.arange(CLASSES)
    assert top_k(torch.ones(CLASSES, CLASSES), label, 1) == pytest.approx(100 / CLASSES)
    assert top_k(torch.ones(CLASSES, CLASSES), label, 5) == pytest.approx(500 / CLASSES)


def test_top_k_is_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (500, 9), generator=generator).double()  # with many ties
    scores[::50, 3] = torch.nan
    label = torch.randint(9, (500,), generator=generator)
    for k in (1, 2, 5, 9, 12):
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        hits = (best == label[:, None]).any(1) & ~scores.gather(1, label[:, None])[:, 0].isnan()
        assert top_k(scores, label, k) == pytest.approx(100 * hits.double().mean().item())


def test_top_k_of_known_scores() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.2, 0.5, 0.3]])
    label = torch.tensor([1, 1, 0, 2])
    assert [top_k(scores, label, k) for k in (1, 2, 3)] == [25.0, 75.0, 100.0]
