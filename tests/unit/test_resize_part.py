"""Boxes with fractions: Pillow's pixels, and the same bytes from every instruction set and from NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from needs import needs_compiler
from numpy.typing import NDArray
from PIL import Image
from torch_resize import random_image, random_part

from equimod.pipelines import kernel
from equimod.pipelines.kernel import Kernel
from equimod.pipelines.resize import CropResizer, crop_specs

needs_compiler(module=True)

Part = tuple[float, float, float, float]
LIBRARY = kernel.library()
KERNELS = [*(Kernel(LIBRARY, name) for name in Kernel(LIBRARY).instruction_sets), None] if LIBRARY else [None]
MODES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def _resized(image: NDArray[np.uint8], box: Part, size: int, mode: str, kernel: Kernel | None) -> NDArray[np.uint8]:
    target = np.full((1, size, size, 3), 99, dtype=np.uint8)
    CropResizer(crop_specs(np.array([box]), size, mode)[None], [target], kernel)(0, image)
    return target[0]


def _cases(count: int, seed: int) -> list[tuple[NDArray[np.uint8], Part, int]]:
    """Images that are hard, boxes with fractions, some up to an edge of the image, and sizes up and down."""
    rng, cases = np.random.default_rng(seed), []
    for number in range(count):
        width, height = (int(side) for side in rng.integers(1, 700 if number % 3 else 40, 2))
        x, y, w, h = random_part(rng, width, height)
        box = [(x, y, w, h), (0.0, y, w, h), (x, y, width - x, h), (0.0, y, float(width), h)][number % 4]
        cases.append((random_image(rng, width, height), box, int(rng.choice([1, 7, 32, 96, 224]))))
    return cases


@pytest.mark.parametrize("mode", MODES)
def test_every_instruction_set_and_numpy_give_the_same_bytes(mode: str) -> None:
    for image, box, size in _cases(150, seed=0):
        expected, *others = (_resized(image, box, size, mode, kernel) for kernel in KERNELS)
        for other in others:
            np.testing.assert_array_equal(other, expected, str((image.shape, box, size)))


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_pillow_within_a_level(mode: str) -> None:
    """But for one value in a million, as torch's of whole boxes. One axis after the other: of tall boxes, Pillow would
    begin with the other one."""
    distances = []
    for image, (x, y, width, height), size in _cases(150, seed=1):
        found = _resized(image, (x, y, width, height), size, mode, KERNELS[0]).astype(int)
        right, bottom = min(x + width, image.shape[1]), min(y + height, image.shape[0])
        across = Image.fromarray(image).resize((size, image.shape[0]), MODES[mode], (x, 0, right, image.shape[0]))
        expected = np.asarray(across.resize((size, size), MODES[mode], (0, y, size, bottom)))
        distances.append(np.abs(found - expected).ravel())
    distance = np.concatenate(distances)
    assert distance.max() <= 2
    assert (distance > 1).mean() < 2e-5
    assert distance.mean() < 0.01


def _in_float64(pixels: NDArray[np.float64], start: float, extent: float, size: int, mode: str) -> NDArray[np.float64]:
    """The first axis resized by the formula: weighted means of all its pixels, (size,*), then cut to 0 to 255."""
    scale = extent / size
    centers = start + (np.arange(size)[:, None] + 0.5) * scale
    x = np.abs(np.arange(len(pixels)) + 0.5 - centers) / max(scale, 1)
    if mode == "bilinear":
        weight = np.maximum(1 - x, 0)
    else:
        weight = np.select([x < 1, x < 2], [1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2])
    return np.clip(np.tensordot(weight / weight.sum(axis=1, keepdims=True), pixels, 1), 0, 255)


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_the_formula_but_for_two_roundings(mode: str) -> None:
    distances = []
    for image, (x, y, width, height), size in _cases(60, seed=2):
        found = _resized(image, (x, y, width, height), size, mode, KERNELS[0])
        across = _in_float64(image.astype(float).swapaxes(0, 1), x, width, size, mode)
        expected = _in_float64(across.swapaxes(0, 1), y, height, size, mode)
        distances.append(np.abs(found - expected).ravel())
    distance = np.concatenate(distances)
    assert distance.max() < 1.6
    assert distance.mean() < 0.4


def test_a_box_with_fractions_takes_no_weights_of_a_whole_one() -> None:
    image = np.random.default_rng(3).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    whole, part = (0.0, 0.0, 100.0, 80.0), (0.0, 0.25, 100.0, 79.75)
    for compiled in KERNELS[:-1]:
        first = _resized(image, whole, 32, "bicubic", compiled)
        found = _resized(image, part, 32, "bicubic", compiled)
        np.testing.assert_array_equal(found, _resized(image, part, 32, "bicubic", None))
        np.testing.assert_array_equal(_resized(image, whole, 32, "bicubic", compiled), first)
        assert (first != found).mean() > 0.1
