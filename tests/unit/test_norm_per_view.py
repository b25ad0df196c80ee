"""Batch norms that see each view by itself: as many passes of one view each, in every method."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from commands import call
from small_models import ENCODER, SETTINGS
from torch import Tensor, nn

from equimod.models.heads import mlp
from equimod.models.losses import barlow_twins_loss, byol_loss, nt_xent, simsiam_loss, vicreg_loss
from equimod.models.settings import BYOLSettings, EquiModSettings, SimSiamSettings
from equimod.models.ssl import SSL, build_ssl
from equimod.pipelines.params import Standardizer
from equimod.train.main import main

N, P = 6, 5


def _model(method: str, per_view: bool, equimod: bool = False) -> SSL:
    torch.manual_seed(0)
    settings = EquiModSettings(projector=(12, 6), embedding=(7,)) if equimod else None
    standardizer = Standardizer(torch.zeros(P), torch.ones(P))
    model = build_ssl(method, ENCODER, SETTINGS[method], settings, standardizer, norm_per_view=per_view).double()
    for p in model.parameters():  # off the zeros of residual branches
        p.data += 0.1 * torch.randn_like(p)
    return model


def _batch(sets: int) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(sets * N, 3, 16, 16, generator=generator, dtype=torch.float64)
    images[-N:] *= 3  # statistics of the second views are others
    of_i, of_j = torch.randn(2, N, P, generator=generator, dtype=torch.float64)
    return images, (of_i, of_j), torch.arange(N)


def _by_hand(model: SSL, method: str, v_i: Tensor, v_j: Tensor) -> Tensor:
    """The loss as the method's authors write it: every module called on one view at a time."""
    m: Any = model.method
    z_i, z_j = (m.projector(model.encoder(v)) for v in (v_i, v_j))
    if method == "simclr":
        return nt_xent(z_i, z_j, m.temperature)
    if method == "barlow_twins":
        return barlow_twins_loss(z_i, z_j, m.lambd)
    if method == "vicreg":
        return vicreg_loss(z_i, z_j, *m.weights)
    q_i, q_j = m.predictor(z_i), m.predictor(z_j)
    if method == "simsiam":
        return simsiam_loss(q_i, q_j, z_i, z_j)
    with torch.no_grad():
        t_i, t_j = (m.target_projector(m.target_encoder(v)) for v in (v_i, v_j))
    return byol_loss(q_i, q_j, t_i, t_j)


@pytest.mark.parametrize("method", ["simclr", "barlow_twins", "vicreg", "simsiam", "byol"])
def test_the_loss_is_that_of_one_view_at_a_time(method: str) -> None:
    model = _model(method, per_view=True)
    other = deepcopy(model)
    images, encodings, label = _batch(2)
    found = model(images, encodings, label)["loss"]
    expected = _by_hand(other, method, *images.chunk(2))
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")
    joint = _model(method, per_view=False)(images, encodings, label)["loss"]
    assert abs(float(joint.detach()) - float(found.detach())) > 1e-3


def test_x_is_normalised_by_itself_too() -> None:
    model = _model("simclr", per_view=True, equimod=True)
    images, encodings, label = _batch(3)
    h = [model.encoder(part) for part in images.chunk(3)]
    found = model.encode(images)
    for mine, expected in zip(found, h, strict=True):
        torch.testing.assert_close(mine, expected)
    assert model(images, encodings, label)["equivariance"].isfinite()


def test_both_have_the_same_weights_at_the_start() -> None:
    joint, apart = (_model("byol", per_view, equimod=True).state_dict() for per_view in (False, True))
    assert all(torch.equal(value, apart[name]) for name, value in joint.items())


def test_biases_are_there_where_they_are_asked_for() -> None:
    assert [name for name, _ in mlp(4, (3, 2), end="linear", bias=True).named_parameters() if name == "3.bias"]
    assert not [m for m in mlp(4, (3, 2), end="linear") if isinstance(m, nn.Linear) and m.bias is not None]
    byol = build_ssl("byol", ENCODER, BYOLSettings(16, 8, bias=True)).method
    assert [m.bias is not None for m in byol.projector if isinstance(m, nn.Linear)] == [False, True]
    assert [m.bias is not None for m in byol.predictor if isinstance(m, nn.Linear)] == [False, True]
    simsiam = build_ssl("simsiam", ENCODER, SimSiamSettings((16,), 8, 4, bias=True)).method
    assert [m.bias is not None for m in simsiam.projector if isinstance(m, nn.Linear)] == [False, False]
    assert [m.bias is not None for m in simsiam.predictor if isinstance(m, nn.Linear)] == [False, True]


def test_an_earlier_layer_is_not_read_from_several_passes(options: list[str]) -> None:
    answer = call(main, *options, "--norm-per-view", "--equivariance.layer", "layer3")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "takes one for each view; leave one of them out" in answer.err
