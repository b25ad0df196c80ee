"""Ranks of a node share its cores."""

from __future__ import annotations

import os
import threading
from itertools import chain

import pytest

from equimod.pipelines import workers


def _shares(cores: set[int], ranks: int, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    shares = []
    for rank in range(ranks):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        shares.append(workers.own_cores())
    return shares


@pytest.mark.parametrize(("cores", "ranks"), [(16, 8), (13, 4), (2, 1), (3, 3)])
def test_ranks_split_the_cores_evenly(cores: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    have = set(range(5, 5 + cores))
    shares = _shares(have, ranks, monkeypatch)
    assert sorted(chain(*shares)) == sorted(have)
    assert {len(share) for share in shares} <= {cores // ranks, -(-cores // ranks)}


def test_more_ranks_than_cores_share_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(map(len, _shares({0, 1}, 4, monkeypatch))) == [0, 0, 1, 1]


def test_a_thread_keeps_to_its_cores_and_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before, last = os.sched_getaffinity(0), max(os.sched_getaffinity(0))
    monkeypatch.setattr(workers, "own_cores", lambda: [last])
    found: list[set[int]] = []

    def stay() -> None:
        workers.stay_on_own_cores()
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=stay)
    thread.start()
    thread.join()
    assert found == [{last}]
    assert os.sched_getaffinity(0) == before
