"""The losses against references written with loops from the papers' formulas, and against cases worked by hand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from equimod.models import losses
from equimod.models.losses import equimod_loss, nt_xent

TEMPERATURE = 0.3
LOSSES = {
    "nt_xent": (nt_xent, 2),
    "paper": (partial(equimod_loss, negatives="paper"), 4),
    "siblings": (partial(equimod_loss, negatives="siblings"), 4),
    "official": (partial(equimod_loss, negatives="official"), 4),
}


def _embeddings(count: int, n: int = 5, dim: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def _exp_similarity(a: Tensor, b: Tensor) -> float:
    return math.exp(float(a @ b / (a.norm() * b.norm())) / TEMPERATURE)


def _nt_xent_by_loops(left: list[Tensor], right: list[Tensor]) -> float:
    vectors, total = left + right, 0.0
    for i, anchor in enumerate(vectors):
        positive = vectors[(i + len(left)) % len(vectors)]
        denominator = sum(_exp_similarity(anchor, other) for k, other in enumerate(vectors) if k != i)
        total -= math.log(_exp_similarity(anchor, positive) / denominator)
    return total / len(vectors)


def _eq_4_by_loops(y_i: Tensor, y_j: Tensor, yhat_i: Tensor, yhat_j: Tensor, siblings: bool = False) -> float:
    n, total = len(y_i), 0.0
    y, y_hat = [*y_i, *y_j], [*yhat_i, *yhat_j]
    for i in range(2 * n):
        j = i + n if i < n else i - n
        denominator = sum(_exp_similarity(y[i], y[k]) for k in range(2 * n) if k != i and (siblings or k != j))
        total -= math.log(_exp_similarity(y[i], y_hat[i]) / denominator)
    return total / (2 * n)


@pytest.fixture(params=[1, 3, 4, losses.BLOCK], autouse=True)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are compared in blocks: results must not hang by their size."""
    monkeypatch.setattr(losses, "BLOCK", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logsumexp_in_place_equals_torchs_to_the_bit(dtype: torch.dtype) -> None:
    products = 9 * torch.randn(64, 1024, generator=torch.Generator().manual_seed(0), dtype=dtype)
    products[0], products[1, :1000], products[2, 7] = -torch.inf, -torch.inf, torch.inf
    expected = products.logsumexp(1)
    assert torch.equal(losses._logsumexp_(products), expected)


def test_no_rows_have_no_sums() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert losses.log_sum_exp(torch.zeros(0, 4), torch.zeros(3, 4), (none,)).shape == (0,)


def test_nt_xent_equals_its_definition() -> None:
    z_i, z_j = _embeddings(2)
    assert float(nt_xent(z_i, z_j, TEMPERATURE)) == pytest.approx(_nt_xent_by_loops([*z_i], [*z_j]), rel=1e-12)


def test_paper_form_equals_equation_4() -> None:
    embeddings = _embeddings(4)
    assert float(equimod_loss(*embeddings, TEMPERATURE)) == pytest.approx(_eq_4_by_loops(*embeddings), rel=1e-12)


def test_siblings_are_one_more_negative_of_equation_4() -> None:
    embeddings = _embeddings(4)
    found = float(equimod_loss(*embeddings, TEMPERATURE, negatives="siblings"))
    assert found == pytest.approx(_eq_4_by_loops(*embeddings, siblings=True), rel=1e-12)
    assert found > float(equimod_loss(*embeddings, TEMPERATURE))


def test_official_form_equals_nt_xent_of_embeddings_and_predictions() -> None:
    y_i, y_j, yhat_i, yhat_j = _embeddings(4)
    loss = equimod_loss(y_i, y_j, yhat_i, yhat_j, TEMPERATURE, negatives="official")
    assert float(loss) == pytest.approx(_nt_xent_by_loops([*y_i, *y_j], [*yhat_i, *yhat_j]), rel=1e-12)


def test_losses_of_orthogonal_vectors_are_those_worked_by_hand() -> None:
    e = torch.eye(4, dtype=torch.float64)
    pull = 1 / TEMPERATURE
    # Each of 4 vectors: itself out, its twin at similarity 1, two at 0.
    assert float(nt_xent(e[:2], e[:2], TEMPERATURE)) == pytest.approx(math.log(math.exp(pull) + 2) - pull)
    # Eq. 4: the prediction is exact, and the two views of the other image are at 0.
    y = (e[:2], e[2:], e[:2], e[2:])
    assert float(equimod_loss(*y, TEMPERATURE)) == pytest.approx(math.log(2) - pull)
    # Official: of 8 vectors the prediction at 1, six others at 0.
    official = equimod_loss(*y, TEMPERATURE, negatives="official")
    assert float(official) == pytest.approx(math.log(math.exp(pull) + 6) - pull)


def test_equation_4_ignores_how_near_the_two_views_of_an_image_are() -> None:
    """Siblings are neither positives nor negatives; here only the similarity of y_i to y_j changes."""
    basis = one_hot(torch.arange(6), 6).double()
    y_i, near, far = basis[:2], basis[:2] + 0.1 * basis[4:6], -basis[:2] + 0.1 * basis[4:6]
    values = [float(equimod_loss(y_i, y_j, y_i, y_j, TEMPERATURE)) for y_j in (near, far)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_equation_4_compares_a_prediction_with_its_own_view_only() -> None:
    y_i, y_j, yhat_i, yhat_j = _embeddings(4)
    yhat_i.requires_grad_()
    (gradient,) = torch.autograd.grad(equimod_loss(y_i, y_j, yhat_i, yhat_j, TEMPERATURE), yhat_i)
    (expected,) = torch.autograd.grad(-cosine_similarity(y_i, yhat_i).sum() / TEMPERATURE / (2 * len(y_i)), yhat_i)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    loss, count = LOSSES[name]
    embeddings = [e.requires_grad_() for e in _embeddings(count, n=3)]
    assert torch.autograd.gradcheck(lambda *e: loss(*e, temperature=TEMPERATURE), embeddings)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_the_length_of_embeddings(name: str) -> None:
    loss, count = LOSSES[name]
    embeddings = _embeddings(count)
    scaled = [e * (1 + k) for k, e in enumerate(embeddings)]
    torch.testing.assert_close(loss(*scaled, temperature=0.2), loss(*embeddings, temperature=0.2))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(name: str, dtype: torch.dtype) -> None:
    loss, count = LOSSES[name]
    embeddings = _embeddings(count, n=16, dim=32, dtype=dtype)
    expected = loss(*(e.float() for e in embeddings), temperature=0.05)
    with torch.autocast("cpu", dtype=dtype):
        inside = loss(*embeddings, temperature=0.05)
    assert expected.dtype == inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert torch.equal(loss(*embeddings, temperature=0.05), expected)
    assert loss(*(e.double() for e in embeddings), temperature=0.05).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_a_collapsed_embedding_gives_finite_losses_and_gradients(name: str) -> None:
    loss, count = LOSSES[name]
    embeddings = [torch.zeros(3, 4, requires_grad=True) for _ in range(count)]
    value = loss(*embeddings, temperature=TEMPERATURE)
    value.backward()
    assert value.isfinite()
    assert all(e.grad is not None and e.grad.isfinite().all() for e in embeddings)


def test_equation_4_refuses_a_global_batch_of_one_sample() -> None:
    with pytest.raises(ValueError, match="batch size of 2 or more"):
        equimod_loss(*_embeddings(4, n=1), TEMPERATURE)
    assert equimod_loss(*_embeddings(4, n=1), TEMPERATURE, negatives="official").isfinite()


@pytest.mark.parametrize("shape", [(4, 3), (5,), (0, 4), (5, 4, 1)])
@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    loss, count = LOSSES[name]
    wrong: list[Any] = [torch.zeros(shape) for _ in range(count)] if shape != (4, 3) else _embeddings(count)
    wrong[0] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"one shape \(n, D\).*z_i"):
        loss(*wrong, temperature=TEMPERATURE)
