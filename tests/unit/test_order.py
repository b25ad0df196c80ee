"""The order of an epoch: complete, keyed, cut alike whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from equimod.pipelines.sampler import Sampler


@pytest.mark.parametrize("window", [None, 1024])
def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(window: int | None) -> None:
    sampler = Sampler(5000, 100, seed=1, window=window)
    first, second = sampler.epoch(0), sampler.epoch(1)
    assert sorted(first) == sorted(second) == list(range(5000))
    assert (first != second).mean() > 0.9
    np.testing.assert_array_equal(first, Sampler(5000, 50, seed=1, window=window).epoch(0))
    assert (first != Sampler(5000, 100, seed=2, window=window).epoch(0)).mean() > 0.9


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batch_of_a_single_rank(world_size: int) -> None:
    alone = Sampler(1003, 100, seed=7)
    ranks = [Sampler(1003, 100, seed=7, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 9):
        together = np.concatenate([rank.shard(rank.epoch(3), step) for rank in ranks])
        np.testing.assert_array_equal(together, alone.shard(alone.epoch(3), step))


def test_a_windowed_shuffle_reads_few_blocks_at_a_time_and_still_mixes() -> None:
    sampler = Sampler(256 * 100, 256, seed=0, window=256 * 8)
    positions = sampler.epoch(0)
    for step in range(0, len(sampler), 10):
        assert len(set(sampler.shard(positions, step) // 256)) <= 16
    assert np.abs(np.diff(positions)).mean() > 1000


def test_training_drops_the_short_batch_and_evaluation_keeps_it() -> None:
    assert len(Sampler(105, 10, seed=0)) == 10
    evaluation = Sampler(105, 10, seed=0, shuffle=False)
    assert len(evaluation) == 11
    np.testing.assert_array_equal(evaluation.shard(evaluation.epoch(5), 10), [100, 101, 102, 103, 104])


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"samples": 100, "batch_size": 10, "world_size": 3}, "multiple of 3"),
        ({"samples": 100, "batch_size": 128}, "at most 100"),
        ({"samples": 100, "batch_size": 10, "rank": 2, "world_size": 2}, "ranks count from 0"),
        ({"samples": 100, "batch_size": 10, "world_size": 2, "shuffle": False}, "world_size=1"),
        ({"samples": 100, "batch_size": 10, "window": 10}, "256 or more"),
    ],
)
def test_orders_that_cannot_be_are_refused_with_the_remedy(arguments: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        Sampler(**arguments, seed=0)
