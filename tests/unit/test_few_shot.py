"""Few-shot episodes: where the answer is known, beside a reference in loops, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equimod.train.config import ConfigError
from equimod.train.evaluation import few_shot
from equimod.train.evaluation.features import Features
from equimod.train.evaluation.few_shot import FewShotSettings, measure

SMALL = FewShotSettings(ways=3, shots=(1, 2), queries=4, episodes=30)


def _features(noise: float, classes: int = 5, images: int = 8) -> Features:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(classes).repeat(images)
    h = 3 * torch.eye(classes)[label] + noise * torch.randn(len(label), classes, generator=generator)
    return Features(h, label, tuple(map(str, range(classes))))


def test_classes_far_apart_are_always_found_and_noise_is_worth_chance() -> None:
    assert dict(measure(_features(0.01), seed=0, settings=SMALL)) == {
        "few_shot_3way_1shot_top1": 100.0,
        "few_shot_3way_1shot_top1_ci95": 0.0,
        "few_shot_3way_2shot_top1": 100.0,
        "few_shot_3way_2shot_top1_ci95": 0.0,
    }
    many = FewShotSettings(ways=3, shots=(1,), queries=4, episodes=2000)
    found = dict(measure(_features(1e4, images=60), seed=0, settings=many))
    assert found["few_shot_3way_1shot_top1"] == pytest.approx(100 / 3, abs=2)


def test_the_length_of_representations_does_not_matter() -> None:
    features = _features(2.0)
    lengths = torch.logspace(-2, 2, len(features))[:, None]
    longer = Features(lengths * features.h, features.label, features.classes)
    assert dict(measure(longer, seed=0, settings=SMALL)) == dict(measure(features, seed=0, settings=SMALL))


def test_accuracy_equals_a_reference_in_loops() -> None:
    h = torch.nn.functional.normalize(torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1)), dim=2)
    rows = h.double().numpy()
    hits = []
    for c in range(4):
        for query in rows[c, 2:]:
            means = [rows[k, :2].mean(0) for k in range(4)]
            hits.append(max(range(4), key=lambda k: query @ means[k] / np.linalg.norm(means[k])) == c)
    assert few_shot.accuracy(h, 2).item() == pytest.approx(np.mean(hits))


def test_an_episode_has_images_of_its_classes_once_and_depends_on_seed_and_number_alone() -> None:
    of_class = [np.arange(c * 10, c * 10 + 10) for c in range(5)]
    first = few_shot._draw(of_class, 3, 7, ways=3, images=6)
    assert np.array_equal(first, few_shot._draw(of_class, 3, 7, ways=3, images=6))
    assert len(np.unique(first)) == 18
    assert all(len({row // 10 for row in rows}) == 1 for rows in first.tolist())
    others = [few_shot._draw(of_class, seed, number, ways=3, images=6) for seed, number in ((3, 8), (4, 7))]
    assert not any(np.array_equal(first, other) for other in others)


def test_the_interval_is_that_of_the_episodes() -> None:
    found = dict(measure(_features(2.0), seed=0, settings=SMALL))
    few = dict(measure(_features(2.0), seed=0, settings=FewShotSettings(ways=3, shots=(1,), queries=4, episodes=10)))
    assert 0 < found["few_shot_3way_1shot_top1_ci95"] < few["few_shot_3way_1shot_top1_ci95"]


def test_classes_without_images_enough_take_no_part_and_too_few_are_refused() -> None:
    full = _features(0.01)
    lacking = Features(full.h[:-1], full.label[:-1], full.classes)  # the last class has 7 of 8
    assert dict(measure(lacking, seed=0, settings=SMALL))["few_shot_3way_2shot_top1"] == 100.0
    wide = FewShotSettings(ways=5, shots=(1, 4), queries=4)
    with pytest.raises(ConfigError, match="needs 5 classes of 8 images, and 4 of the validation images' have as many"):
        dict(measure(lacking, seed=0, settings=wide))
