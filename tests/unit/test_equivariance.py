"""Equivariance measured where the answer is known: hand-made embeddings, no prediction, a perfect prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from equimod.models.encoder import Encoder, build_encoder
from equimod.models.equimod import EquiMod
from equimod.models.settings import EncoderSettings, EquiModSettings
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.params import Standardizer
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, one_by_one
from equimod.pipelines.records import open_records
from equimod.train.evaluation import equivariance, equivariance_per_operator
from equimod.train.evaluation.equivariance import LEAST_DISSIMILARITY, displacement
from equimod.train.evaluation.features import FrozenEncoder, ViewSet

POLICY = POLICIES["simclr_cifar10"]


def _model(tree: Path) -> tuple[Encoder, EquiMod]:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(arch="resnet10", width=8))
    standardizer = Standardizer.fit(POLICY, open_records(tree).size, draws=1000)
    equimod = EquiMod(encoder.feature_dim, standardizer, EquiModSettings(projector=(16, 8), embedding=(4,)))
    for module in (encoder, equimod):  # statistics that are not those of a fresh batch norm
        for norm in module.modules():
            if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 2)
    return encoder, equimod


def _measure(tree: Path, equimod: EquiMod, encoder: Encoder, policy: AugmentationPolicy = POLICY) -> dict[str, float]:
    return dict(equivariance.measure(equimod, ViewSet(FrozenEncoder(encoder, None), open_records(tree), policy)))


def _at(*degrees: float) -> Tensor:
    """Vectors in the plane, of different lengths, at these angles."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    length = 1 + torch.arange(len(degrees))[:, None]
    return (length * torch.stack([angle.cos(), angle.sin()], dim=1)).float()


def test_hand_made_embeddings_have_the_displacement_of_eq_5_and_6() -> None:
    # The view lies at 0 degrees, x at the first angle of each pair, the prediction at the second.
    absolute, relative = displacement(_at(90, 60, 180), _at(0, 0, 0), _at(60, 90, 90))
    torch.testing.assert_close(absolute, torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(relative, torch.tensor([2.0, 0.5, 2.0], dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_perfect_prediction_gives_a_finite_ratio() -> None:
    y_x, y_v = _at(60), _at(0)
    absolute, relative = displacement(y_x, y_v, y_v)
    assert absolute.item() == pytest.approx(0.5)
    assert relative.item() == pytest.approx(0.5 / LEAST_DISSIMILARITY)


def test_embeddings_that_are_all_the_same_count_as_invariant() -> None:
    y = _at(10, 20)
    absolute, relative = displacement(y, y, y)
    assert absolute.tolist() == [0, 0]
    assert relative.tolist() == [1, 1]


def test_without_a_prediction_the_values_are_exactly_0_and_1(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, equimod = _model(image_tree)
    monkeypatch.setattr(equimod, "predict", lambda y_x, t: y_x)
    assert _measure(image_tree, equimod, encoder) == {
        "equivariance_absolute": 0.0,
        "equivariance_absolute_ci95": 0.0,
        "equivariance_relative": 1.0,
        "equivariance_relative_ci95": 0.0,
        "equivariance_relative_median": 1.0,
    }


def test_values_equal_a_computation_by_hand_over_images_and_views(image_tree: Path) -> None:
    encoder, equimod = _model(image_tree)
    records = open_records(image_tree)
    encoder.eval()
    equimod.eval()
    (batch,) = build_pipeline(records, POLICY, batch_size=len(records), seed=0, shuffle=False).epoch(0)

    def cosine(a: Tensor, b: Tensor) -> np.ndarray:
        a_, b_ = a.double().numpy(), b.double().numpy()
        return (a_ * b_).sum(1) / np.sqrt((a_**2).sum(1) * (b_**2).sum(1))

    absolute, relative = [], []
    with torch.no_grad():
        y_x = equimod.projector(encoder(batch.x))
        for view in batch.views:
            y = equimod.projector(encoder(view.image))
            y_hat = equimod.predict(y_x, view.encoding)
            absolute.append(cosine(y, y_hat) - cosine(y, y_x))
            relative.append((1 - cosine(y, y_x)) / (1 - cosine(y, y_hat)))
    expected = {"equivariance_relative_median": np.median(relative)}
    for name, values in (("absolute", absolute), ("relative", relative)):
        per_image = np.mean(values, axis=0)
        expected[f"equivariance_{name}"] = per_image.mean()
        expected[f"equivariance_{name}_ci95"] = 1.96 * per_image.std(ddof=1) / np.sqrt(len(records))
    equimod.train()  # run measures in eval mode whatever it is given
    assert _measure(image_tree, equimod, encoder) == pytest.approx(expected, rel=1e-4)


def _per_operator(tree: Path, equimod: EquiMod, encoder: Encoder) -> dict[str, float]:
    views = ViewSet(FrozenEncoder(encoder, None), open_records(tree), POLICY)
    return dict(equivariance_per_operator.measure(equimod, views))


def test_every_operator_is_measured_alone(image_tree: Path) -> None:
    encoder, equimod = _model(image_tree)
    found = _per_operator(image_tree, equimod, encoder)
    assert [name for name in found if "absolute" in name and "ci95" not in name] == [
        f"equivariance_absolute_{operator}" for operator in ("crop", "flip", "jitter", "gray", "identity")
    ]
    for operator in (
        "flip",
        "gray",
        "identity",
    ):  # without a strength: the same view whatever its number
        view = one_by_one(POLICY)[operator]
        alone = _measure(image_tree, equimod, encoder, AugmentationPolicy(POLICY.x, (view,)))
        for name in ("absolute", "absolute_ci95", "relative", "relative_ci95"):
            form, _, interval = name.partition("_")
            key = f"equivariance_{form}_{operator}{'_' if interval else ''}{interval}"
            assert found[key] == pytest.approx(alone[f"equivariance_{name}"], rel=1e-5)


def test_a_policy_with_other_operators_is_refused(image_tree: Path) -> None:
    encoder, equimod = _model(image_tree)
    with pytest.raises(ValueError, match=r"encodes 18 numbers, EquiMod was trained on 15; give the same operators"):
        _measure(image_tree, equimod, encoder, POLICIES["byol_cifar10"])
