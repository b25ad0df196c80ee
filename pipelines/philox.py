"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A number is a pure function of (seed, index, epoch, stream, position): no state, hence nothing that depends on the
number of threads, workers or ranks, or on where a run was resumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)

WORD_LIMIT = 2**32
SEED_LIMIT = 2**64


def philox4x32(counter: ArrayLike, seed: int) -> NDArray[np.uint32]:
    """The Philox4x32-10 block of each counter.

    `counter`: unsigned integers below 2**32, shape (..., 4); `seed`: 64 bits, its low word is the first key word.
    Returns uint32 (..., 4).
    """
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT32) ^ c1 ^ np.uint64(key0),
            product1 & _LOW32,
            (product0 >> _SHIFT32) ^ c3 ^ np.uint64(key1),
            product0 & _LOW32,
        )
        key0, key1 = (key0 + _WEYL[0]) & 0xFFFFFFFF, (key1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(seed: int, index: ArrayLike, *, epoch: int, stream: int, blocks: int) -> NDArray[np.uint32]:
    """`4 * blocks` random words for each index: uint32 (N, 4 * blocks).

    Raises ValueError for a seed outside [0, 2**64) or an index, epoch or stream outside [0, 2**32).
    """
    index = np.asarray(index, dtype=np.int64)
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed={seed}: give an integer from 0 to 2**64 - 1")
    extremes = {"epoch": (epoch, epoch), "stream": (stream, stream)}
    if index.size:
        extremes["index"] = (int(index.min()), int(index.max()))
    for what, (low, high) in extremes.items():
        if low < 0 or high >= WORD_LIMIT:
            raise ValueError(f"{what} from {low} to {high}: must lie from 0 to 2**32 - 1")
    counter = np.empty((len(index), blocks, 4), dtype=np.uint64)
    counter[..., 0] = index[:, None]
    counter[..., 1] = epoch
    counter[..., 2] = stream
    counter[..., 3] = np.arange(blocks, dtype=np.uint64)
    return philox4x32(counter, seed).reshape(len(index), 4 * blocks)


def uniform(seed: int, index: ArrayLike, *, epoch: int, stream: int, blocks: int) -> NDArray[np.float64]:
    """`words` as multiples of 2**-32 in [0, 1): float64 (N, 4 * blocks)."""
    return words(seed, index, epoch=epoch, stream=stream, blocks=blocks) / float(WORD_LIMIT)
