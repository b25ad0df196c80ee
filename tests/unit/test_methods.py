"""The methods beside SimCLR: their losses against independent forms and cases worked by hand, and what they train."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_models import ENCODER, SETTINGS
from torch import Tensor, nn

from equimod.models.byol import BYOL
from equimod.models.encoder import build_encoder
from equimod.models.losses import barlow_twins_loss, byol_loss, simsiam_loss, vicreg_loss
from equimod.models.ssl import METHODS, build_ssl


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_byol_and_simsiam_of_known_angles() -> None:
    """q_i at 60 degrees to t_j and q_j opposite to t_i, whatever their lengths."""
    t_j, t_i = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    q_i, q_j = torch.tensor([[1.0, math.sqrt(3)]]), torch.tensor([[0.0, -5.0]])
    assert float(byol_loss(q_i, q_j, t_i, t_j)) == pytest.approx((2 - 2 * 0.5) + (2 + 2))
    assert float(simsiam_loss(q_i, q_j, t_i, t_j)) == pytest.approx(-(0.5 - 1) / 2)


@pytest.mark.parametrize("loss", [byol_loss, simsiam_loss])
def test_no_gradient_flows_into_the_target(loss: Any) -> None:
    q_i, q_j, t_i, t_j = (_random(5, 4, seed=seed).requires_grad_() for seed in range(4))
    loss(q_i, q_j, t_i, t_j).backward()
    assert q_i.grad is not None
    assert q_j.grad is not None
    assert t_i.grad is None
    assert t_j.grad is None


def test_barlow_twins_equals_its_definition() -> None:
    z_i, z_j = (_random(7, 4, seed=seed) for seed in range(2))
    a, b = ((z.numpy() - z.numpy().mean(0)) / np.sqrt(z.numpy().var(0) + 1e-5) for z in (z_i, z_j))
    expected = 0.0
    for k in range(4):
        for other in range(4):
            c = (a[:, k] * b[:, other]).mean()
            expected += (1 - c) ** 2 if k == other else 0.3 * c**2
    assert float(barlow_twins_loss(z_i, z_j, 0.3)) == pytest.approx(expected, rel=1e-12)


def test_barlow_twins_of_equal_and_of_doubled_columns() -> None:
    """Orthogonal columns that agree cost next to nothing; two equal columns cost lambd for each of their two pairs."""
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert float(barlow_twins_loss(z, 5 * z + 3, 0.1)) == pytest.approx(0, abs=1e-9)
    twice = z[:, :1].repeat(1, 2)
    assert float(barlow_twins_loss(twice, twice, 0.1)) == pytest.approx(0.2, rel=1e-4)


def test_vicreg_equals_its_definition() -> None:
    z_i, z_j = (_random(6, 3, seed=seed) / 2 for seed in range(2))
    expected = 25 * float(((z_i - z_j) ** 2).mean())
    for z in (z_i, z_j):
        covariance = np.cov(z.numpy().T)
        deviation = np.sqrt(np.diag(covariance) + 1e-4)
        expected += 10 * np.maximum(0, 1 - deviation).mean() / 2
        expected += 2 * (covariance**2 - np.diag(np.diag(covariance) ** 2)).sum() / 3
    assert float(vicreg_loss(z_i, z_j, 25, 10, 2)) == pytest.approx(expected, rel=1e-12)


def test_vicreg_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="batch size of 2"):
        vicreg_loss(_random(1, 3), _random(1, 3), 25, 25, 1)


@pytest.mark.parametrize("loss", [lambda a, b: barlow_twins_loss(a, b, 0.1), lambda a, b: vicreg_loss(a, b, 25, 25, 1)])
def test_gradients_are_those_of_the_value_and_half_precision_is_computed_in_float32(loss: Any) -> None:
    z_i, z_j = (_random(5, 3, seed=seed).requires_grad_() for seed in range(2))
    assert torch.autograd.gradcheck(loss, (z_i, z_j))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z_i.detach().float(), z_j.detach().float())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(z_i.detach(), z_j.detach())), rel=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_trainable_weight_of_a_method_gets_a_gradient_and_no_other(method: str) -> None:
    torch.manual_seed(0)
    model = build_ssl(method, ENCODER, SETTINGS[method], None, None)
    for block in (module for module in model.encoder.modules() if hasattr(module, "bn2")):
        nn.init.ones_(block.bn2.weight)  # zero at first, which hides what lies before
    views = torch.randn(16, 3, 16, 16)
    model(views, (torch.empty(0), torch.empty(0)), torch.empty(0))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (".target_" not in name), name


def test_byols_target_starts_as_the_online_network_and_follows_with_its_buffers() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER)
    byol = BYOL(encoder, SETTINGS["byol"])
    pairs = [(byol.target_encoder, encoder), (byol.target_projector, byol.projector)]

    def states(side: int) -> dict[str, Tensor]:
        return {f"{n}.{k}": v for n, pair in enumerate(pairs) for k, v in pair[side].state_dict().items()}

    assert all(torch.equal(value, states(1)[key]) for key, value in states(0).items())
    before = {key: value.clone() for key, value in states(0).items()}
    with torch.no_grad():
        for value in states(1).values():
            value.add_(1)
    # share = (1 - base) (cos(pi progress) + 1) / 2, base .9
    for progress, share in ((0.0, 0.1), (0.5, 0.05), (1.0, 0.0)):
        byol.before_step(encoder, progress)
        for key, value in states(0).items():
            online = states(1)[key]
            expected = before[key] + share * (online - before[key]) if value.is_floating_point() else online
            torch.testing.assert_close(value, expected)
        before = {key: value.clone() for key, value in states(0).items()}
    assert not any(p.requires_grad for target, _ in pairs for p in target.parameters())


def test_byols_views_go_to_the_target_crosswise() -> None:
    """The prediction of one view is held against the target's projection of the other."""
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER)
    byol = BYOL(encoder, SETTINGS["byol"])
    views = torch.randn(12, 3, 16, 16)
    h_i, h_j = encoder(views).chunk(2)
    q_i, q_j = byol.predictor(byol.projector(torch.cat([h_i, h_j]))).chunk(2)
    t_i, t_j = byol.target_projector(byol.target_encoder(views)).chunk(2)
    torch.testing.assert_close(byol((h_i, h_j), byol.target_forward(views)), byol_loss(q_i, q_j, t_i, t_j))
    assert float(byol_loss(q_i, q_j, t_i, t_j)) != pytest.approx(float(byol_loss(q_i, q_j, t_j, t_i)), rel=1e-3)
