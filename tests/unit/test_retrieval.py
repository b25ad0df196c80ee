"""Ranks of the true view among those of its image, where they are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from equimod.models.encoder import Encoder, build_encoder
from equimod.models.equimod import EquiMod
from equimod.models.settings import EncoderSettings, EquiModSettings
from equimod.pipelines.params import Standardizer
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.train.evaluation import retrieval
from equimod.train.evaluation.features import FrozenEncoder, ViewSet

POLICY = POLICIES["byol_cifar10"]
CHANCE = {
    "retrieval_mrr": sum(1 / k for k in range(1, 17)) / 16,
    "retrieval_hit1": 1 / 16,
    "retrieval_hit5": 5 / 16,
}


def _at(*degrees: float) -> Tensor:
    """Vectors in the plane at these angles, one an image: (1,2) each, stacked to (K,1,2)."""
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]


def _ranks(y: Tensor, y_hat: Tensor) -> list[list[int]]:
    found: list[list[int]] = retrieval.ranks(retrieval.similarities(y, y_hat)).tolist()
    return found


def test_ranks_of_hand_made_embeddings() -> None:
    views, predictions = _at(0, 40, 100), _at(10, 80, 5)
    assert _ranks(views, predictions) == [[1, 2, 3]]
    assert _ranks(5 * views, predictions) == [[1, 2, 3]]  # lengths do not matter
    other = _at(0, 90, 180)
    both = _ranks(torch.cat([views, other], dim=1), torch.cat([predictions, other], dim=1))
    assert both == [[1, 2, 3], [1, 1, 1]]


def test_embeddings_that_are_all_the_same_have_the_last_rank() -> None:
    assert _ranks(_at(20, 20, 20), _at(20, 20, 20)) == [[3, 3, 3]]


def test_the_error_is_the_distance_to_the_parameters_of_the_view_that_is_found() -> None:
    similarity = retrieval.similarities(_at(0, 40, 100), _at(10, 80, 5))  # finds views 0, 2 and 0
    parameters = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]])
    of_nearest, of_all = retrieval.errors(similarity, parameters)
    assert of_nearest.tolist() == [[0, 4, 5]]
    assert of_all.tolist() == [[pytest.approx(8 / 3), pytest.approx(7 / 3), pytest.approx(3)]]


def test_parameters_are_compared_as_equimod_sees_them() -> None:
    """The second one is hundreds of pixels, and its deviation is 100."""
    parameters = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 400.0]]])
    y, y_hat = _at(0, 40, 100), _at(10, 80, 5)
    embedded = iter(zip(y, y_hat, strict=True))
    equimod: Any = SimpleNamespace(
        embed=lambda *_: (None, *next(embedded)), standardizer=Standardizer([0.0, 0.0], [1.0, 100.0])
    )
    encodings = list(parameters.transpose(0, 1))
    _, of_nearest, _ = retrieval._retrieve(equimod, y[0], list(y), encodings)
    assert of_nearest.tolist() == [[0, 4, 5]]


@pytest.fixture
def model(image_tree: Path) -> tuple[Encoder, EquiMod]:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(arch="resnet10", width=8))
    standardizer = Standardizer.fit(POLICY, open_records(image_tree).size, draws=1000)
    return encoder, EquiMod(encoder.feature_dim, standardizer, EquiModSettings(projector=(16, 8), embedding=(4,)))


def _run(tree: Path, encoder: Encoder, equimod: EquiMod) -> dict[str, float]:
    return dict(retrieval.measure(equimod, ViewSet(FrozenEncoder(encoder, None), open_records(tree), POLICY)))


def test_a_predictor_that_does_nothing_has_the_values_of_chance(
    image_tree: Path, model: tuple[Encoder, EquiMod], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, equimod = model
    monkeypatch.setattr(equimod, "predict", lambda y_x, t: y_x)
    found = _run(image_tree, encoder, equimod)
    assert found.pop("retrieval_pre") == pytest.approx(1, abs=0.1)  # the same view for all, whichever it is
    assert found == pytest.approx(CHANCE)


def test_a_perfect_predictor_has_only_first_ranks(
    image_tree: Path, model: tuple[Encoder, EquiMod], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, equimod = model
    embed = equimod.embed

    def perfect(h_x: Tensor, h_v: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y_x, y_v, _ = embed(h_x, h_v, t)
        return y_x, y_v, y_v

    monkeypatch.setattr(equimod, "embed", perfect)
    found = _run(image_tree, encoder, equimod)
    assert found.pop("retrieval_pre") == 0
    assert set(found.values()) == {1.0}
