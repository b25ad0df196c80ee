"""Random orders made place by place: complete, keyed, and as random as shuffling."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from equimod.pipelines.permutation import Permutation


def _drawn(size: int, seed: int = 0, epoch: int = 0, number: int = 0) -> Permutation:
    return Permutation.drawn(size, seed, epoch=epoch, stream=5, number=number)


def _whole(order: Permutation) -> np.ndarray:
    return order(np.arange(order.size))


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 1000, 2**14, 2**14 + 1])
def test_everything_stands_at_one_place(size: int) -> None:
    assert sorted(_whole(_drawn(size)).tolist()) == list(range(size))


def test_a_place_is_found_without_the_others() -> None:
    order = _drawn(1000)
    whole = _whole(order)
    places = np.array([[999, 0], [17, 17]])
    np.testing.assert_array_equal(order(places), whole[places])


def test_every_key_gives_another_order() -> None:
    orders = [_drawn(1000), _drawn(1000, seed=1), _drawn(1000, epoch=1), _drawn(1000, number=1)]
    for one, other in itertools.combinations(orders, 2):
        assert (_whole(one) == _whole(other)).mean() < 0.01


def test_the_order_is_pinned() -> None:
    """Runs go on after an update of the program as they began."""
    assert _drawn(10).size == 10
    assert _whole(_drawn(10)).tolist() == [3, 8, 0, 7, 9, 6, 1, 4, 2, 5]
    assert _drawn(1_281_167, seed=3, epoch=2)(np.array([0, 1, 1_281_166])).tolist() == [663087, 476305, 51464]


def test_all_orders_of_a_few_are_as_likely() -> None:
    found = Counter(tuple(_whole(_drawn(5, seed)).tolist()) for seed in range(120 * 30))
    assert len(found) == 120
    assert chisquare(list(found.values())).pvalue > 0.001


@pytest.mark.parametrize("size", [100, 256])  # a part of a domain, and all of it
def test_places_neighbours_and_differences_are_evenly_spread(size: int) -> None:
    at, after, difference = np.zeros((size, size)), np.zeros((size, size)), np.zeros(size)
    for epoch in range(1500):
        order = _whole(_drawn(size, epoch=epoch))
        at[np.arange(size), order] += 1
        after[order[:-1], order[1:]] += 1
        np.add.at(difference, (order[0::2] - order[1::2]) % size, 1)
    assert not after.diagonal().any()
    for counts in (at.ravel(), after[~np.eye(size, dtype=bool)], difference[1:]):
        assert chisquare(counts).pvalue > 0.001


def test_it_takes_memory_for_the_places_alone() -> None:
    tracemalloc.start()
    _drawn(14_000_000)(np.arange(4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
