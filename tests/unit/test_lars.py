"""LARS against a reference of one tensor at a time, against torch's SGD, and without a wait for the device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from equimod.train.lars import LARS, lars_groups

MOMENTUM, WEIGHT_DECAY, TRUST = 0.9, 0.03, 0.002
RATES = (0.1, 0.5, 0.4, 0.05)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2))
    nn.init.zeros_(model[4].weight)
    return model.double()


def _set_gradients(model: nn.Module, step: int) -> None:
    """Random gradients; that of one weight is zero in every second step, one parameter never has any."""
    generator = torch.Generator().manual_seed(step)
    for name, p in model.named_parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        if name == "3.weight" and step % 2:
            p.grad.zero_()
        if name == "0.bias":
            p.grad = None


def _optimizer(model: nn.Module) -> LARS:
    return LARS(lars_groups(model), RATES[0], MOMENTUM, WEIGHT_DECAY, TRUST)


def _step(model: nn.Module, optimizer: LARS, step: int, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    _set_gradients(model, step)
    optimizer.step()


def _reference_step(p: Tensor, buffer: Tensor, gradient: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    if p.ndim > 1:
        gradient = gradient + WEIGHT_DECAY * p
        if float(p.norm()) > 0 and float(gradient.norm()) > 0:
            gradient = gradient * (TRUST * float(p.norm()) / float(gradient.norm()))
    buffer = MOMENTUM * buffer + lr * gradient
    return p - buffer, buffer


def test_steps_equal_the_reference_of_one_tensor_at_a_time() -> None:
    model = _model()
    optimizer = _optimizer(model)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step, lr in enumerate(RATES):
        _step(model, optimizer, step, lr)
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected[name], buffers[name] = _reference_step(expected[name], buffers[name], p.grad, lr)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_weights_without_norm_take_plain_steps() -> None:
    weight, zero_gradient = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight, zero_gradient], lr=0.5, momentum=0.0, weight_decay=0.0, trust_coefficient=TRUST)
    weight.grad, zero_gradient.grad = torch.full((2, 2), 3.0), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(weight, torch.full((2, 2), -1.5))
    assert torch.equal(zero_gradient, torch.ones(2, 2))


def test_groups_without_lars_step_like_sgd() -> None:
    ours, theirs = _model(), _model()
    lars = LARS([{"params": ours.parameters(), "lars": False}], 0.1, MOMENTUM, WEIGHT_DECAY, TRUST)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for step in range(4):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        lars.step()
        sgd.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


def test_biases_and_batch_norm_have_neither_weight_decay_nor_lars() -> None:
    model = _model()
    optimizer = _optimizer(model)
    weights, others = optimizer.param_groups
    names = {p: name for name, p in model.named_parameters()}
    assert [names[p] for p in weights["params"]] == ["0.weight", "3.weight", "4.weight"]
    assert [names[p] for p in others["params"]] == ["0.bias", "1.weight", "1.bias", "3.bias", "4.bias"]
    assert (weights["weight_decay"], weights["lars"]) == (WEIGHT_DECAY, True)
    assert (others["weight_decay"], others["lars"]) == (0.0, False)


def test_frozen_parameters_are_left_out() -> None:
    model = _model()
    model[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in lars_groups(model)) == 6


@pytest.mark.parametrize("weight_decay", [0.0, WEIGHT_DECAY])
def test_gradients_are_left_as_they_are(weight_decay: float) -> None:
    model = _model()
    _set_gradients(model, 0)
    before = copy.deepcopy([p.grad for p in model.parameters()])
    LARS(lars_groups(model), RATES[0], MOMENTUM, weight_decay, TRUST).step()
    for p, gradient in zip(model.parameters(), before, strict=True):
        assert (p.grad is None and gradient is None) or torch.equal(p.grad, gradient)


def test_gradients_that_are_views_of_others_take_the_same_steps() -> None:
    """Between their elements in memory lie those of another."""
    ours, theirs = ([nn.Parameter(torch.full((4, 3), 1.0 + i)) for i in range(3)] for _ in range(2))
    wide = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    for p, q, columns in zip(ours, theirs, wide, strict=True):
        p.grad, q.grad = columns[:, ::2], columns[:, ::2].contiguous()
    LARS(ours, lr=0.5).step()
    LARS(theirs, lr=0.5).step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_a_restored_state_continues_exactly() -> None:
    model = _model()
    optimizer = _optimizer(model)
    for step in range(2):
        _step(model, optimizer, step, RATES[step])
    resumed = copy.deepcopy(model)
    other = LARS(lars_groups(resumed), lr=9.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 4):
        _step(model, optimizer, step, RATES[step])
        _step(resumed, other, step, RATES[step])
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_step_never_reads_a_tensor_on_the_host() -> None:
    """On the meta device there is nothing to read: .item(), a branch on a tensor, a copy to the host all raise."""
    model = _model().to("meta")
    optimizer = _optimizer(model)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    with pytest.raises((RuntimeError, NotImplementedError)):
        next(model.parameters()).sum().item()
