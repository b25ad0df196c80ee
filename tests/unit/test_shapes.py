from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import ImageFolder

from equimod.pipelines.shapes import CLASSES, FIRST_INDEX, Factors, _mask, draw_dataset, draw_sample

TOOL = Path(__file__).parents[2] / "tools" / "draw_shapes.py"
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


def test_tree_holds_the_drawn_samples_and_their_factors(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    draw_dataset(tmp_path / "one", samples=300, seed=5, workers=1, progress=lambda *now: told.append(now))
    draw_dataset(tmp_path / "two", samples=300, seed=5, workers=2)
    draw_dataset(tmp_path / "test", samples=20, seed=5, split="test")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert told == [(250, 300), (300, 300)]
    tree = ImageFolder(str(tmp_path / "one"))
    assert tree.classes == list(CLASSES)
    assert Counter(tree.targets) == dict.fromkeys(range(10), 30)
    with (tmp_path / "one" / "factors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {str(Path(path).relative_to(tmp_path / "one")) for path, _ in tree.samples}
    for index in (0, 123, 299):
        image, factors = draw_sample(seed=5, index=index)
        assert float(rows[index]["hue"]) == pytest.approx(factors.hue, abs=1e-4)
        assert rows[index]["texture"] == factors.texture
        with Image.open(tmp_path / "one" / rows[index]["file"]) as stored:
            assert np.abs(np.asarray(stored, dtype=float) - image).mean() < 8
    assert not set(files(tmp_path / "test").values()) & set(files(tmp_path / "one").values())


def test_command_draws_and_refuses_what_is_there(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), str(tmp_path / "out"), "--samples", "20", "--workers", "1"]
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.count("\n") == 1
    assert len(files(tmp_path / "out")) == 21
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr == f"error: {tmp_path / 'out'} is there already; choose another name or remove it\n"
    wrong = subprocess.run([*command, "--seed", "-1"], check=False, capture_output=True)
    assert wrong.returncode == 2
