"""Which sample when: the order of an epoch, cut into steps and the ranks' shards of them.

The order is a function of (seed, epoch); a step takes the same samples whatever the number of ranks. No more of it is
made than a step or a window needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines import philox
from equimod.pipelines.permutation import Permutation

_ORDER_STREAM = philox.WORD_LIMIT - 1  # far from the streams of views, which are numbered from 0
_RUN = 256  # neighbours in the file that a windowed shuffle keeps together


@dataclass(frozen=True)
class Cursor:
    """Where a run stands: with its configuration all that a resume needs, since everything random is keyed."""

    epoch: int
    step: int  # within the epoch


@dataclass(frozen=True)
class Shard:
    """What a rank takes in a step."""

    epoch: int
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """A step of a rank beside what it has the disk do."""

    shard: Shard
    ahead: NDArray[np.int64]  # positions to request before this step
    done: NDArray[np.int64]  # positions that are not used again in this epoch, or not soon, after this step


@dataclass(frozen=True)
class Sampler:
    """The samples of each step on one rank.

    `batch_size` is global; a rank takes its shard of every global batch, in rank order. A shuffled order drops the
    samples at the end that fill no batch; an unshuffled one (evaluation, one rank) keeps them as a shorter batch.
    `window`: shuffle only within about that many neighbours at a time, so that a cold disk is read in runs of 256
    samples. A rank then takes those of a global batch that lie close to each other. None shuffles the whole set.
    """

    samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True
    window: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size={self.batch_size} is global and cannot be split over {self.world_size} ranks; "
                f"give a multiple of {self.world_size}"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} of world_size={self.world_size}; ranks count from 0")
        if self.shuffle and self.batch_size > self.samples:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the data ({self.samples} samples); "
                f"give at most {self.samples}"
            )
        if not self.shuffle and self.world_size > 1:
            raise ValueError(f"world_size={self.world_size}: an unshuffled order serves one rank; give world_size=1")
        if self.window is not None and self.window < _RUN:
            raise ValueError(f"window={self.window} samples; give {_RUN} or more, or None to shuffle the whole set")

    def __len__(self) -> int:
        """Steps an epoch."""
        return self.samples // self.batch_size if self.shuffle else -(-self.samples // self.batch_size)

    @property
    def local_batch_size(self) -> int:
        return self.batch_size // self.world_size

    def positions(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Positions at the places `start` to `stop` of the order of `epoch`, which holds each of 0..samples-1 once."""
        stop = min(stop, self.samples)
        if not self.shuffle:
            return np.arange(start, stop)
        if self.window is None:
            order = Permutation.drawn(self.samples, self.seed, epoch=epoch, stream=_ORDER_STREAM)
            return order(np.arange(start, stop))
        groups = _Groups(self.samples, self.seed, self.window // _RUN, epoch)
        first, last = groups.at(start), groups.at(stop - 1)
        begin = groups.begin(first)
        return np.concatenate([_group(groups, number) for number in range(first, last + 1)])[
            start - begin : stop - begin
        ]

    def shard(self, epoch: int, step: int) -> Shard:
        """What this rank takes in `step` of `epoch`."""
        start, first = step * self.batch_size, self.rank * self.local_batch_size
        if self.window is None:
            return Shard(epoch, self.positions(epoch, start + first, start + first + self.local_batch_size))
        of_step = np.sort(self.positions(epoch, start, start + self.batch_size))
        return Shard(epoch, of_step[first : first + self.local_batch_size])

    def planned(self, shards: Iterable[Shard]) -> Iterator[Step]:
        """This rank's `shards`, in their order, with what to request from the disk by then, and what is done with.

        Without a window each asks for its own. With one, whole runs of what the steps of the next window take from are
        asked for, a share of them with each step of this one, so that the disk always has as much to do.
        """
        if self.window is None:
            yield from (Step(shard, shard.positions, shard.positions) for shard in shards)
            return
        following, steps = iter(shards), -(-self.window // self.batch_size)
        here = list(islice(following, steps))
        runs = _runs(here)
        first = runs  # which no window before has asked for
        while here:
            there = list(islice(following, steps))
            next_runs = _runs(there)
            shares = np.array_split(next_runs[~np.isin(next_runs, runs)], len(here))
            done = [runs[:0]] * (len(here) - 1) + [runs[~np.isin(runs, next_runs)]]
            for shard, share, no_more in zip(here, shares, done, strict=True):
                ahead = _of_runs(np.concatenate([first, share]), self.samples)
                yield Step(shard, ahead, _of_runs(no_more, self.samples))
                first = runs[:0]
            here, runs = there, next_runs


@dataclass(frozen=True)
class _Groups:
    """Groups of `runs` runs each, in random order, whose samples are used in a random order of their own."""

    samples: int
    seed: int
    runs: int
    epoch: int

    def at(self, place: int) -> int:
        """The number of the group at a place of the epoch."""
        return (place + self._missing * (place >= self.begin(_short(self) + 1))) // (self.runs * _RUN)

    def begin(self, number: int) -> int:
        """The place of the epoch where a group begins: the last run of the data may be shorter than the others."""
        return number * self.runs * _RUN - self._missing * (number > _short(self))

    @property
    def _missing(self) -> int:
        return -self.samples % _RUN

    def order(self) -> Permutation:
        """That of the runs."""
        return Permutation.drawn(-(-self.samples // _RUN), self.seed, epoch=self.epoch, stream=_ORDER_STREAM)


@lru_cache(maxsize=4)
def _short(groups: _Groups) -> int:
    """The number of the group that has the last run of the data."""
    order = groups.order()
    return int(np.argmax(order(np.arange(order.size)))) // groups.runs


@lru_cache(maxsize=4)
def _group(groups: _Groups, number: int) -> NDArray[np.int64]:
    """The samples of a group, in the order of their use."""
    order = groups.order()
    runs = order(np.arange(number * groups.runs, min((number + 1) * groups.runs, order.size)))
    positions = _of_runs(runs, groups.samples)
    inside = Permutation.drawn(len(positions), groups.seed, epoch=groups.epoch, stream=_ORDER_STREAM, number=number + 1)
    return positions[inside(np.arange(len(positions)))]


def _of_runs(runs: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
    positions = (runs[:, None] * _RUN + np.arange(_RUN)).ravel()
    return positions[positions < samples]


def _runs(shards: Sequence[Shard]) -> NDArray[np.int64]:
    """The numbers of the runs that shards take from, in the order of their first use."""
    numbers = np.concatenate([np.empty(0, np.int64), *(shard.positions // _RUN for shard in shards)])
    return numbers[np.sort(np.unique(numbers, return_index=True)[1])]
