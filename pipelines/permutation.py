"""Random orders whose places are computed one by one: nothing as long as the data is drawn, sorted or held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines import philox

_ROUNDS = 8
_FEWEST_BITS = 8  # of a domain: in smaller ones, eight rounds do not mix well enough
_MIXERS = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Permutation:
    """A random order of 0..size-1: a function of its keys.

    A Feistel network over the next power of two, whose rounds mix as splitmix64 does (Steele et al. 2014, "Fast
    splittable pseudorandom number generators"); what falls beyond `size` goes through it again (cycle walking; Black
    and Rogaway 2002, "Ciphers with arbitrary finite domains").
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
        bits = max(_FEWEST_BITS, (self.size - 1).bit_length())
        low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
        for key in self.keys:
            kept = number & ((np.uint64(1) << low) - np.uint64(1))
            word = kept ^ key
            for shift, factor in _MIXERS:
                word = (word ^ (word >> shift)) * factor
            number = (kept << high) | ((number >> low) ^ (word >> (np.uint64(64) - high)))
            low, high = high, low
        return number
