"""The drawn data set: classes that differ by outline alone, balanced, and the same for the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import call
from numpy.typing import NDArray

from equimod.pipelines.shapes import CLASSES, FIRST_INDEX, ONE_DIRECTION, Factors, _mask, draw_sample
from equimod.tools.draw_shapes import main

DRAWN = 2000


@pytest.fixture(scope="module")
def samples() -> tuple[NDArray[np.uint8], list[Factors]]:
    drawn = [draw_sample(seed=0, index=index) for index in range(DRAWN)]
    return np.stack([image for image, _ in drawn]), [factors for _, factors in drawn]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def linear_accuracy(features: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    """Held-out accuracy of a least-squares classifier on features and their squares."""
    columns = (features - features.mean(0)) / features.std(0)
    inputs = np.concatenate([columns, columns**2, np.ones((len(columns), 1))], axis=1)
    half = len(inputs) // 2
    weights, *_ = np.linalg.lstsq(inputs[:half], np.eye(len(CLASSES))[label[:half]], rcond=None)
    return float(((inputs[half:] @ weights).argmax(1) == label[half:]).mean())


def test_sample_depends_on_seed_and_index_alone() -> None:
    image, factors = draw_sample(seed=3, index=7)
    draw_sample(seed=3, index=8)
    again, same = draw_sample(seed=3, index=7)
    np.testing.assert_array_equal(image, again)
    assert factors == same
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    for other in (draw_sample(seed=4, index=7), draw_sample(seed=3, index=17)):
        assert other[1] != factors
        assert (other[0] != image).any()


def test_splits_share_no_sample() -> None:
    assert FIRST_INDEX["test"] - FIRST_INDEX["train"] >= 1 << 32


def test_classes_are_balanced_and_in_order(samples: tuple[NDArray[np.uint8], list[Factors]]) -> None:
    assert [factors.label for factors in samples[1]] == [index % 10 for index in range(DRAWN)]
    assert list(CLASSES) == sorted(set(CLASSES))
    assert len(CLASSES) == 10


def test_colour_does_not_give_the_class_away(samples: tuple[NDArray[np.uint8], list[Factors]]) -> None:
    images, factors = samples
    label = np.array([f.label for f in factors])
    assert linear_accuracy(images.mean((1, 2)), label) < 0.16


def test_drawn_factors_do_not_give_the_class_away(samples: tuple[NDArray[np.uint8], list[Factors]]) -> None:
    label = np.array([f.label for f in samples[1]])
    table = [
        [f.x, f.y, f.size, f.angle, f.hue, f.lightness, f.background_hue, f.background_lightness, len(f.texture)]
        for f in samples[1]
    ]
    assert linear_accuracy(np.array(table), label) < 0.15


def test_place_and_outline_are_what_the_factors_say(samples: tuple[NDArray[np.uint8], list[Factors]]) -> None:
    row, column = np.mgrid[0:64, 0:64] + 0.5
    for factors in samples[1][:200]:
        mask = _mask(factors)
        distance = np.hypot(column - factors.x, row - factors.y)
        assert mask[distance > factors.size + 1.5].max() == 0, factors
        assert mask[distance > 0.75 * factors.size].max() == 1  # the outline reaches out to its size
        assert factors.x - factors.size >= 0
        assert factors.x + factors.size <= 64


def test_outline_turns_with_the_angle() -> None:
    def arrow(angle: float) -> tuple[float, float]:
        """Where the tip lies from the centre: x to the right, y downwards."""
        mask = _mask(Factors(0, 32, 32, 25, angle, 0, 0, "plain", 0, 0, "plain"))
        row, column = np.nonzero(mask > 0.5)
        farthest = np.hypot(column - 31.5, row - 31.5).argmax()
        return float(column[farthest] - 31.5), float(row[farthest] - 31.5)

    assert arrow(0) == pytest.approx((0, -24), abs=2)
    assert arrow(90) == pytest.approx((-24, 0), abs=2)


def test_an_outline_has_one_direction_or_looks_the_same_after_a_part_of_a_turn() -> None:
    for label, name in enumerate(CLASSES):
        upright, *turned = (
            _mask(Factors(label, 32, 32, 25, angle, 0, 0, "plain", 0, 0, "plain"))
            for angle in (0, *(360 * k / n for n in (2, 3, 4, 5) for k in range(1, n)))
        )
        least = min(np.abs(mask - upright).mean() for mask in turned)
        assert least > 0.02 if name in ONE_DIRECTION else least < 0.005, name


def test_figure_stands_out_from_the_background(samples: tuple[NDArray[np.uint8], list[Factors]]) -> None:
    luma = samples[0].astype(float) @ np.array([0.299, 0.587, 0.114]) / 255
    for image, factors in zip(luma[:500], samples[1], strict=False):
        mask = _mask(factors)
        assert abs(image[mask == 1].mean() - image[mask == 0].mean()) > 0.15


def test_outlines_differ_in_every_turn() -> None:
    """Two classes of one size share clearly less than all of their area at the best of 36 angles."""
    turns = [
        np.stack([_mask(Factors(label, 32, 32, 25, 10 * turn, 0, 0, "plain", 0, 0, "plain")) for turn in range(36)])
        for label in range(10)
    ]
    for one in range(10):
        for other in range(one):
            both = np.minimum(turns[one][0], turns[other]).sum((1, 2))
            either = np.maximum(turns[one][0], turns[other]).sum((1, 2))
            assert (both / either).max() < 0.85, (CLASSES[one], CLASSES[other])


def test_command_draws_and_refuses_what_is_there(tmp_path: Path) -> None:
    arguments = [tmp_path / "out", "--samples", 20, "--workers", 1]
    drawn = call(main, *arguments)
    assert (drawn.code, drawn.out.count("\n")) == (0, 1)
    assert len(files(tmp_path / "out")) == 21
    again = call(main, *arguments)
    assert again.code == 1
    assert again.err == f"error: {tmp_path / 'out'} is there already; choose another name or remove it\n"
    assert call(main, *arguments, "--seed", -1).code == 2
