"""Philox4x32-10 against Random123's published known answers."""

from __future__ import annotations

import numpy as np
import pytest

from equimod.pipelines.philox import philox4x32, uniform, words


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_blocks_equal_random123_known_answers(counter: list[int], key: int, answer: list[int]) -> None:
    assert philox4x32(counter, key).tolist() == answer


def test_words_are_the_blocks_of_index_epoch_stream_and_block_number() -> None:
    got = words(seed=5, index=[7, 9], epoch=2, stream=1, blocks=3)
    want = [[philox4x32([index, 2, 1, block], 5) for block in range(3)] for index in (7, 9)]
    np.testing.assert_array_equal(got, np.reshape(want, (2, 12)))


def test_uniform_numbers_lie_in_the_unit_interval_and_are_uniform() -> None:
    u = uniform(seed=1, index=np.arange(50_000), epoch=0, stream=0, blocks=1)
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    expected = u.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seed": -1, "index": [0], "epoch": 0, "stream": 0}, "seed=-1"),
        ({"seed": 2**64, "index": [0], "epoch": 0, "stream": 0}, "seed=18446744073709551616"),
        ({"seed": 0, "index": [2**32], "epoch": 0, "stream": 0}, "index"),
        ({"seed": 0, "index": [0], "epoch": -1, "stream": 0}, "epoch"),
        ({"seed": 0, "index": [0], "epoch": 0, "stream": 2**32}, "stream"),
    ],
)
def test_keys_out_of_range_are_refused_by_name(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        words(**arguments, blocks=1)
