"""The order of an epoch: complete, keyed, cut alike whatever the number of ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equimod.pipelines.sampler import Sampler, Shard


def _epoch(sampler: Sampler, epoch: int) -> np.ndarray:
    return sampler.positions(epoch, 0, sampler.samples)


@pytest.mark.parametrize("window", [None, 1024])
@pytest.mark.parametrize("samples", [5000, 5120])  # the last run is a part, or whole
def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(samples: int, window: int | None) -> None:
    of_both = Sampler(samples, 100, seed=1, window=window)
    first, second = _epoch(of_both, 0), _epoch(of_both, 1)
    assert sorted(first) == sorted(second) == list(range(samples))
    assert (first != second).mean() > 0.9
    np.testing.assert_array_equal(first, _epoch(Sampler(samples, 50, seed=1, window=window), 0))
    assert (first != _epoch(Sampler(samples, 100, seed=2, window=window), 0)).mean() > 0.9


@pytest.mark.parametrize("window", [None, 512, 1024, 10**6])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_part_of_an_epoch_is_that_part_of_all_of_it(shuffle: bool, window: int | None) -> None:
    sampler = Sampler(5000, 100, seed=1, window=window, shuffle=shuffle)
    for epoch in range(8):  # the last run, which is a part, falls into another group each time
        whole = _epoch(sampler, epoch)
        for start, stop in [(0, 1), (4990, 6000), (1000, 1100), (1023, 1025), (2036, 3100)]:
            np.testing.assert_array_equal(sampler.positions(epoch, start, stop), whole[start:stop])


@pytest.mark.parametrize("window", [None, 512])
def test_the_last_samples_are_in_the_part_that_is_left_out_as_often_as_others(window: int | None) -> None:
    sampler = Sampler(2000, 1900, seed=0, window=window)
    left_out = np.concatenate([sampler.positions(epoch, 1900, 2000) for epoch in range(400)])
    assert len(left_out) == 40_000
    often = np.bincount(left_out, minlength=2000)
    assert often[-208:].mean() == pytest.approx(20, rel=0.25)  # those of the run that is a part
    assert often[:-208].mean() == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("window", [None, 512])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batch_of_a_single_rank(world_size: int, window: int | None) -> None:
    alone = Sampler(1003, 100, seed=7, window=window)
    ranks = [replace(alone, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 9):
        together = np.concatenate([rank.shard(3, step).positions for rank in ranks])
        np.testing.assert_array_equal(together, alone.shard(3, step).positions)
        assert set(together) == set(_epoch(alone, 3)[step * 100 : (step + 1) * 100])


def test_a_windowed_shuffle_reads_few_blocks_at_a_time_and_still_mixes() -> None:
    sampler = Sampler(256 * 100, 256, seed=0, window=256 * 8)
    for step in range(0, len(sampler), 10):
        assert len(set(sampler.shard(0, step).positions // 256)) <= 16
    assert np.abs(np.diff(_epoch(sampler, 0))).mean() > 1000


def test_with_a_window_a_rank_takes_neighbours_of_a_global_batch() -> None:
    ranks = [Sampler(256 * 200, 4096, seed=0, rank=rank, world_size=32, window=10_240) for rank in range(32)]
    runs = [len(set(rank.shard(0, 3).positions // 256)) for rank in ranks]
    assert max(runs) <= 4
    assert np.mean(runs) < 2.5


def _shards(sampler: Sampler, epochs: int) -> list[Shard]:
    return [sampler.shard(epoch, step) for epoch in range(epochs) for step in range(len(sampler))]


def test_without_a_window_each_step_asks_for_its_own_samples() -> None:
    shards = _shards(Sampler(1000, 100, seed=0), 2)
    steps = list(Sampler(1000, 100, seed=0).planned(shards))
    assert [step.shard for step in steps] == shards
    assert all(step.ahead is step.done is step.shard.positions for step in steps)


@pytest.mark.parametrize("world_size", [1, 4])
def test_with_a_window_whole_runs_are_asked_for_a_window_before_they_are_needed(world_size: int) -> None:
    sampler = Sampler(256 * 90 - 100, 512, seed=3, world_size=world_size, window=256 * 10)  # five steps a window
    shards, asked, steps = _shards(sampler, 2), set[int](), list[int]()
    for number, step in enumerate(sampler.planned(shards)):
        assert step.shard is shards[number]
        asked |= set(step.ahead.tolist())
        steps.append(len(step.ahead))
        known = number + 5 if number % 5 == 4 else number  # at the end of a window, all of the next
        assert set(np.concatenate([s.positions for s in shards[number : known + 1]]).tolist()) <= asked
        asked -= set(step.done.tolist())  # which is asked for again before it is used again
        for positions in (step.ahead, step.done):
            whole = {position // 256 for position in positions.tolist()}
            assert len(positions) == sum(min(256, sampler.samples - 256 * run) for run in whole)
        assert len(asked) <= 256 * 40
    first, *rest = steps
    assert max(rest) <= first  # no burst but at the start
    if world_size == 1:
        assert sum(steps) < 2.3 * sampler.samples  # over two epochs


def test_training_drops_the_short_batch_and_evaluation_keeps_it() -> None:
    assert len(Sampler(105, 10, seed=0)) == 10
    evaluation = Sampler(105, 10, seed=0, shuffle=False)
    assert len(evaluation) == 11
    np.testing.assert_array_equal(evaluation.shard(5, 10).positions, [100, 101, 102, 103, 104])


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
