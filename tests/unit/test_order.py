"""The order of an epoch: complete, keyed, cut alike whatever the number of ranks."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equimod.pipelines import sampler
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.sampler import Cursor, Sampler, Shard


@pytest.mark.parametrize("window", [None, 1024])
def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(window: int | None) -> None:
    of_both = Sampler(5000, 100, seed=1, window=window)
    first, second = of_both.epoch(0), of_both.epoch(1)
    assert sorted(first) == sorted(second) == list(range(5000))
    assert (first != second).mean() > 0.9
    np.testing.assert_array_equal(first, Sampler(5000, 50, seed=1, window=window).epoch(0))
    assert (first != Sampler(5000, 100, seed=2, window=window).epoch(0)).mean() > 0.9


@pytest.mark.parametrize("window", [None, 512])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batch_of_a_single_rank(world_size: int, window: int | None) -> None:
    alone = Sampler(1003, 100, seed=7, window=window)
    ranks = [replace(alone, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 9):
        together = np.concatenate([rank.shard(rank.epoch(3), step) for rank in ranks])
        np.testing.assert_array_equal(together, alone.shard(alone.epoch(3), step))
        assert set(together) == set(alone.epoch(3)[step * 100 : (step + 1) * 100])


def test_a_windowed_shuffle_reads_few_blocks_at_a_time_and_still_mixes() -> None:
    sampler = Sampler(256 * 100, 256, seed=0, window=256 * 8)
    positions = sampler.epoch(0)
    for step in range(0, len(sampler), 10):
        assert len(set(sampler.shard(positions, step) // 256)) <= 16
    assert np.abs(np.diff(positions)).mean() > 1000


def test_with_a_window_a_rank_takes_neighbours_of_a_global_batch() -> None:
    ranks = [Sampler(256 * 200, 4096, seed=0, rank=rank, world_size=32, window=10_240) for rank in range(32)]
    runs = [len(set(rank.shard(ranks[0].epoch(0), 3) // 256)) for rank in ranks]
    assert max(runs) <= 4
    assert np.mean(runs) < 2.5


def _shards(sampler: Sampler, epochs: int) -> list[Shard]:
    return [
        Shard(epoch, sampler.shard(sampler.epoch(epoch), step))
        for epoch in range(epochs)
        for step in range(len(sampler))
    ]


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


def test_the_order_of_an_epoch_is_made_while_the_one_before_runs(
    image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, str]] = []
    original = Sampler.epoch

    def epoch(self: Sampler, epoch: int) -> np.ndarray:
        made.append((epoch, threading.current_thread().name))
        return original(self, epoch)

    monkeypatch.setattr(Sampler, "epoch", epoch)
    pipeline = build_pipeline(open_records(image_tree), POLICIES["simclr_cifar10"], batch_size=1, seed=0, workers=1)
    batches = pipeline.epochs(Cursor(0, 0), 3)
    for _ in range(15):  # of 24
        next(batches)
    assert [number for number, _ in made] == [0, 1]
    assert all(name.startswith("equimod-order") for _, name in made)
    assert sum(1 for _ in batches) == 3 * 24 - 15
    assert [number for number, _ in made] == [0, 1, 2]


def test_keys_are_drawn_in_parts_and_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Sampler(5000, 100, seed=1).epoch(2)
    monkeypatch.setattr(sampler, "_KEYS", 999)
    np.testing.assert_array_equal(Sampler(5000, 100, seed=1).epoch(2), whole)
