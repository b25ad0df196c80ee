"""Warm-up and cosine decay, step by step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from equimod.train.schedule import warmup_cosine


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    rates = [warmup_cosine(step, total_steps=100, warmup_steps=4, peak=2.0) for step in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_cosine_passes_half_the_peak_halfway_and_ends_at_zero() -> None:
    rates = [warmup_cosine(step, total_steps=100, warmup_steps=20, peak=4.0) for step in range(20, 101)]
    assert rates[0] == 4.0
    assert rates[20] == pytest.approx(4.0 * 0.8535533905932737)  # (1 + cos(pi / 4)) / 2
    assert rates[40] == pytest.approx(2.0)
    assert rates[80] == pytest.approx(0.0, abs=1e-15)
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_no_step_of_a_training_has_rate_zero() -> None:
    assert min(warmup_cosine(step, total_steps=7, warmup_steps=3, peak=1.0) for step in range(7)) > 0


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert warmup_cosine(0, total_steps=1, warmup_steps=0, peak=0.3) == 0.3


@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (10, 11), (10, -1), (0, 0)])
def test_a_warm_up_as_long_as_the_training_is_refused(total: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"warm-up of {warmup} steps in a training of {total}"):
        warmup_cosine(0, total_steps=total, warmup_steps=warmup, peak=1.0)


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_outside_the_training_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"step={step}"):
        warmup_cosine(step, total_steps=10, warmup_steps=2, peak=1.0)
