"""Which sample when: the order of an epoch, cut into steps and the ranks' shards of them.

The order is a function of (seed, epoch); a step takes the same samples whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines import philox

_ORDER_STREAM = philox.WORD_LIMIT - 1  # far from the streams of views, which are numbered from 0
_KEYS = 2**16  # that are drawn at a time, since drawing takes twenty times the memory of what is drawn
_BLOCK = 256  # neighbours in the file that a windowed shuffle keeps together


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
        if self.window is not None and self.window < _BLOCK:
            raise ValueError(f"window={self.window} samples; give {_BLOCK} or more, or None to shuffle the whole set")

    def __len__(self) -> int:
        """Steps an epoch."""
        return self.samples // self.batch_size if self.shuffle else -(-self.samples // self.batch_size)

    @property
    def local_batch_size(self) -> int:
        return self.batch_size // self.world_size

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Every position 0..samples-1 once, in the order of `epoch`: int64 (samples,)."""
        if not self.shuffle:
            return np.arange(self.samples)
        key = self._keys(epoch)
        if self.window is None:
            return np.argsort(key, kind="stable")
        # Blocks in random order, as many as fill a window make a group, samples in random order within their group.
        rank_of_block = np.argsort(np.argsort(key[::_BLOCK], kind="stable"))
        group = np.repeat(rank_of_block // (self.window // _BLOCK), _BLOCK)[: self.samples]
        return np.lexsort((key, group))

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        """A random number for each position, which the order of an epoch sorts them by."""
        keys = np.empty(self.samples, dtype=np.uint64)
        for start in range(0, self.samples, _KEYS):
            positions = np.arange(start, min(start + _KEYS, self.samples))
            words = philox.words(self.seed, positions, epoch=epoch, stream=_ORDER_STREAM, blocks=1).astype(np.uint64)
            keys[positions] = (words[:, 0] << np.uint64(32)) | words[:, 1]
        return keys

    def shard(self, epoch_positions: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """The positions that this rank takes in `step` of the epoch whose order is `epoch_positions`."""
        of_step = epoch_positions[step * self.batch_size : (step + 1) * self.batch_size]
        if self.window is not None:
            of_step = np.sort(of_step)
        return of_step[self.rank * self.local_batch_size :][: self.local_batch_size]

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
                yield Step(shard, self._of_runs(np.concatenate([first, share])), self._of_runs(no_more))
                first = runs[:0]
            here, runs = there, next_runs

    def _of_runs(self, runs: NDArray[np.int64]) -> NDArray[np.int64]:
        positions = (runs[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        return positions[positions < self.samples]


def _runs(shards: Sequence[Shard]) -> NDArray[np.int64]:
    """The numbers of the runs that shards take from, in the order of their first use."""
    numbers = np.concatenate([np.empty(0, np.int64), *(shard.positions // _BLOCK for shard in shards)])
    return numbers[np.sort(np.unique(numbers, return_index=True)[1])]
