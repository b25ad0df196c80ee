"""The linear classifier against a reference, on data of known difficulty, and the encoder it leaves alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from equimod.models.encoder import build_encoder
from equimod.models.settings import EncoderSettings
from equimod.pipelines.batch import Batch
from equimod.pipelines.build import Pipeline
from equimod.pipelines.policy import POLICIES, evaluation_policy
from equimod.pipelines.records import open_records
from equimod.pipelines.sampler import Sampler
from equimod.train.evaluation import linear_probe
from equimod.train.evaluation.features import Features, FrozenEncoder, ViewSet, extract
from equimod.train.evaluation.kept_training import Kept
from equimod.train.evaluation.linear_probe import ProbeSettings

POLICY = evaluation_policy(POLICIES["simclr_cifar10"], "cifar10")


def _features(h: Tensor, label: Tensor, classes: int) -> Features:
    return Features(h, label, tuple(map(str, range(classes))))


def _clusters(samples: int, seed: int) -> Features:
    """Six classes around corners that a linear classifier tells apart."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(samples) % 6
    noise = torch.randn(samples, 8, generator=generator)
    return _features(torch.eye(8)[label] * 4 + 0.3 * noise, label, 6)


def test_separable_features_are_separated() -> None:
    values = dict(linear_probe.on_features(_clusters(600, 0), _clusters(300, 1), seed=0, settings=ProbeSettings(10)))
    assert values == {"linear_cached_top1": 100.0, "linear_cached_top5": 100.0}


def test_noise_is_classified_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    train, val = (
        _features(torch.randn(n, 8, generator=generator), torch.randint(10, (n,), generator=generator), 10)
        for n in (1000, 2000)
    )
    values = dict(linear_probe.on_features(train, val, seed=0, settings=ProbeSettings(5)))
    assert values["linear_cached_top1"] == pytest.approx(10, abs=3)
    assert values["linear_cached_top5"] == pytest.approx(50, abs=5)


def test_the_settings_are_those_of_the_paper() -> None:
    assert ProbeSettings() == ProbeSettings(epochs=90, batch_size=256, lr=0.2, momentum=0.9)


def test_the_classifier_is_nesterov_sgd_with_a_cosine_by_step_from_zero_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, settings = _clusters(50, 2), ProbeSettings(epochs=3, batch_size=16)
    sampler = Sampler(50, 16, seed=7)
    w, b, momentum_w, momentum_b = np.zeros((8, 6)), np.zeros(6), np.zeros((8, 6)), np.zeros(6)
    for step in range(9):
        rows = sampler.shard(step // 3, step % 3).positions
        h, target = train.h[rows].double().numpy(), np.eye(6)[train.label[rows].numpy()]
        odds = np.exp(h @ w + b)
        error = (odds / odds.sum(1, keepdims=True) - target) / 16
        lr = 0.1 * (1 + math.cos(math.pi * step / 9))
        momentum_w, momentum_b = 0.9 * momentum_w + h.T @ error, 0.9 * momentum_b + error.sum(0)
        w -= lr * (h.T @ error + 0.9 * momentum_w)
        b -= lr * (error.sum(0) + 0.9 * momentum_b)

    fit = linear_probe.fit
    classifiers: list[torch.nn.Linear] = []

    def keep(*arguments: Any) -> torch.nn.Linear:
        classifiers.append(fit(*arguments))
        return classifiers[-1]

    monkeypatch.setattr(linear_probe, "fit", keep)
    dict(linear_probe.on_features(train, train, seed=7, settings=settings))
    np.testing.assert_allclose(classifiers[0].weight.detach().numpy().T, w, atol=1e-5)
    np.testing.assert_allclose(classifiers[0].bias.detach().numpy(), b, atol=1e-5)


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    values = dict(linear_probe.on_features(_clusters(12, 0), _clusters(60, 1), seed=0))
    assert values["linear_cached_top1"] == 100.0


def test_the_full_form_leaves_weights_and_batch_norm_alone_and_replays_exactly(image_tree: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(arch="resnet10", width=8))
    before = copy.deepcopy(encoder.state_dict())
    frozen, records = FrozenEncoder(encoder, torch.bfloat16), open_records(image_tree)
    val = extract(frozen, records, POLICY.x, records.classes)
    settings = ProbeSettings(epochs=3, batch_size=8)
    first, second = (
        dict(linear_probe.on_images(ViewSet(frozen, records, POLICY, seed=1, workers=workers), val, settings))
        for workers in (1, 2)
    )
    assert first == second
    assert set(first) == {"linear_top1", "linear_top5"}
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_full_form_trains_on_new_crops_every_epoch(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    frozen = FrozenEncoder(build_encoder(EncoderSettings(arch="resnet10", width=8)), None)
    records = open_records(image_tree)
    seen: list[tuple[float, ...]] = []

    def record(batches: linear_probe.Batches, *_: object) -> torch.nn.Linear:
        for epoch in (0, 1):
            seen.append(tuple(sorted(h.sum().item() for features, _ in batches(epoch) for h in features)))
        return torch.nn.Linear(frozen.feature_dim, 3)

    val = extract(frozen, records, POLICY.x, records.classes)
    monkeypatch.setattr(linear_probe, "fit", record)
    dict(linear_probe.on_images(ViewSet(frozen, records, POLICY, seed=1), val))
    assert len(seen[0]) == len(seen[1]) == len(records)
    assert not set(seen[0]) & set(seen[1])


class _Cut(Exception):
    pass


def test_an_interrupted_one_goes_on_to_the_same_bits(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    frozen = FrozenEncoder(build_encoder(EncoderSettings(arch="resnet10", width=8)), None)
    records, settings = open_records(image_tree), ProbeSettings(epochs=5, batch_size=8)
    val = extract(frozen, records, POLICY.x, records.classes)
    original, epochs, cut_in = Pipeline.epoch, list[int](), [3]

    def epoch(self: Pipeline, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        epochs.append(epoch)
        for step, batch in enumerate(original(self, epoch, start_step)):
            if (epoch, step) == (cut_in[0], 1):
                raise _Cut
            yield batch

    def train(kept: Kept) -> Tensor:
        fitted: list[torch.nn.Linear] = []
        fit = linear_probe.fit
        with monkeypatch.context() as patch:
            patch.setattr(linear_probe, "fit", lambda *arguments: fitted.append(fit(*arguments)) or fitted[0])
            dict(linear_probe.on_images(ViewSet(frozen, records, POLICY, seed=1, workers=1), val, settings, kept))
        return fitted[0].weight.detach()

    whole = train(Kept())
    monkeypatch.setattr(Pipeline, "epoch", epoch)
    kept = Kept(tmp_path / "unfinished" / "linear.safetensors", "key")
    with pytest.raises(_Cut):
        train(kept)
    cut_in[0] = -1
    assert torch.equal(train(kept), whole)
    assert epochs == [0, 1, 2, 3, 3, 4]
    assert list(tmp_path.iterdir()) == []
