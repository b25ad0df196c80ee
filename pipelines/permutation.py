"""Random orders whose places are computed one by one: nothing as long as the data is drawn, sorted or held."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines import philox

_ROUNDS = 8
_FEWEST = 16  # rows and columns of a domain: in smaller ones, eight rounds do not mix well enough
_MIXERS = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Permutation:
    """A random order of 0..size-1: a function of its keys.

    A Feistel network over numbers of two digits, as few as there can be, whose rounds mix as splitmix64 does (Steele et
    al. 2014, "Fast splittable pseudorandom number generators"); what falls beyond `size` goes through it again. Both
    after Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """

    size: int
    keys: NDArray[np.uint64]  # (rounds,)

    @classmethod
    def drawn(cls, size: int, seed: int, *, epoch: int, stream: int, number: int = 0) -> Permutation:
        """The order of (seed, epoch, stream, number), with keys as `philox.words` draws them for index `number`."""
        words = philox.words(seed, [number], epoch=epoch, stream=stream, blocks=_ROUNDS // 2)[0]
        return cls(size, words.view(np.uint64))

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at these places, each from 0 to size - 1: int64 of the same shape."""
        found = self._mixed(places.astype(np.uint64))
        while (beyond := found >= self.size).any():
            found[beyond] = self._mixed(found[beyond])
        return found.astype(np.int64)

    def _mixed(self, number: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high = np.uint64(max(_FEWEST, math.isqrt(self.size - 1) + 1))
        low = np.uint64(max(_FEWEST, -(-self.size // int(high))))
        left, right = number // low, number % low
        for key in self.keys:
            word = right ^ key
            for shift, factor in _MIXERS:
                word = (word ^ (word >> shift)) * factor
            left, right = right, (left + (word >> np.uint64(31))) % high
            high, low = low, high
        return left * low + right
