"""The compiled kernel beside torch's, byte for byte, in every instruction set of this machine, and what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from needs import needs_compiler
from numpy.typing import NDArray
from torch_resize import random_box, random_image, with_torch

from equimod.pipelines import kernel, resize
from equimod.pipelines.backends.choose import choose
from equimod.pipelines.kernel import INSTRUCTION_SETS, Kernel
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.resize import CropResizer, center_crop_specs, crop_specs

needs_compiler(module=True)


@pytest.fixture(params=INSTRUCTION_SETS)
def compiled(request: pytest.FixtureRequest) -> Kernel:
    """The kernel with each of the instruction sets that are here; those that are not have nothing to test."""
    library = kernel.library()
    assert library is not None, "no kernel: install g++, then pip install -e ."
    here = Kernel(library).instruction_sets
    return Kernel(library, request.param if request.param in here else "plain")


def _resize(
    image: NDArray[np.uint8], specs: NDArray[np.void], targets: list[NDArray[np.uint8]], kernel: Kernel | None
) -> None:
    CropResizer(specs[None], [target[None] for target in targets], kernel)(0, image)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_bytes_are_those_of_torch(compiled: Kernel, mode: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(150):
        width, height = (int(side) for side in rng.integers(1, 700 if number % 3 else 40, 2))
        image = random_image(rng, width, height)
        boxes = [(0, 0, width, height), random_box(rng, width, height), random_box(rng, width, height)]
        size = int(rng.choice([1, 7, 32, 96, 224]))
        targets = [np.full((size, size, 3), 99, dtype=np.uint8) for _ in boxes]
        _resize(image, crop_specs(np.array(boxes), size, mode), targets, compiled)
        for box, target in zip(boxes, targets, strict=True):
            np.testing.assert_array_equal(target, with_torch(image, box, size, mode), str((image.shape, box, size)))


def test_x_is_the_same_with_and_without_the_kernel(compiled: Kernel) -> None:
    rng, policy = np.random.default_rng(1), POLICIES["simclr_imagenet"].x
    for size in [(500, 375), (375, 500), (256, 256), (300, 1000), (57, 91)]:
        image = random_image(rng, *size)
        found, expected = (np.empty((224, 224, 3), dtype=np.uint8) for _ in range(2))
        sizes = np.array([size], dtype=np.int32)
        specs = center_crop_specs(sizes, sizes, policy)
        _resize(image, specs, [found], compiled)
        _resize(image, specs, [expected], None)
        np.testing.assert_array_equal(found, expected)


def test_threads_do_not_disturb_each_other(compiled: Kernel) -> None:
    rng = np.random.default_rng(2)
    images = [random_image(rng, 300, 200) for _ in range(40)]
    specs = crop_specs(np.array([(10, 10, 200, 150), (0, 0, 64, 64)]), 96, "bicubic")

    def run(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        targets = [np.empty((96, 96, 3), dtype=np.uint8) for _ in specs]
        _resize(image, specs, targets, compiled)
        return targets

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, images))
    for image, targets in zip(images, found, strict=True):
        for box, target in zip([(10, 10, 200, 150), (0, 0, 64, 64)], targets, strict=True):
            np.testing.assert_array_equal(target, with_torch(image, box, 96, "bicubic"))


@pytest.mark.parametrize("kernel", [resize.KERNEL, None], ids=["kernel", "torch"])
@pytest.mark.parametrize(
    "box",
    [
        *[(1, 0, 10, 10), (0, 1, 10, 10), (-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 2**31 - 1, 5), (0, 0, 1e300, 5)],
        *[(0.5, 0, 9.6, 10), (0, -0.01, 5, 5), (0, 3, 5, 7.01), (2, 2, -0.5, 1), (np.nan, 0, 5, 5), (0, 0, 5, np.nan)],
    ],
)
def test_a_box_beside_the_image_is_refused(box: tuple[float, ...], kernel: Kernel | None) -> None:
    image, target = np.zeros((10, 10, 3), dtype=np.uint8), np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="does not lie in an image of 10x10 pixels"):
        _resize(image, crop_specs(np.array([box]), 8, "bilinear"), [target], kernel)


def test_other_shapes_are_refused() -> None:
    image, specs = np.zeros((10, 10, 3), dtype=np.uint8), crop_specs(np.array([(0, 0, 10, 10)]), 8, "bilinear")[None]
    target = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    for wrong in (image[:, ::2], image[..., :1], image.astype(np.float32)):
        with pytest.raises(ValueError, match=r"image: uint8 \(H,W,3\) with pixels side by side is wanted"):
            CropResizer(specs, [target])(0, wrong)
    for wrong in (target[:, :7], np.zeros((1, 8, 16, 3), np.uint8)[:, :, ::2], target.astype(np.int8), target[[0, 0]]):
        with pytest.raises(ValueError, match=r"target: contiguous uint8 \(1, 8, 8, 3\) is wanted"):
            CropResizer(specs, [wrong])
    with pytest.raises(ValueError, match="zip"):
        CropResizer(specs, [target, target])


def test_a_mapped_file_is_cut_without_the_kernel_too() -> None:
    image, target = np.arange(192, dtype=np.uint8).reshape(8, 8, 3), np.empty((1, 8, 8, 3), dtype=np.uint8)
    image.flags.writeable = False
    CropResizer(crop_specs(np.array([(0, 0, 8, 8)]), 8, "bicubic")[None], [target], None)(0, image)
    np.testing.assert_array_equal(target[0], image)


class _Plain:
    """The library on a processor with neither AVX2 nor NEON."""

    equimod_resample = SimpleNamespace()

    def equimod_instruction_sets(self) -> int:
        return 1


@pytest.mark.parametrize("name", ["avx2", "sse"])
def test_an_instruction_set_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"instruction_set='{name}' is not here; choose"):
        Kernel(_Plain(), name)


def test_a_run_says_what_was_not_compiled(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, cpu, place = open_records(image_tree), torch.device("cpu"), "equimod.pipelines.backends.choose"
    for name in ("KERNEL", "LIBRARY"):
        monkeypatch.setattr(f"{place}.{name}", object())
    assert choose(records, cpu).reason == "the fastest on the CPU"
    monkeypatch.setattr(f"{place}.KERNEL", None)
    assert choose(records, cpu).reason == (
        "the fastest on the CPU; resizing with torch, which is slower; apt-get install g++ and pip install again, "
        "which compiles the kernel"
    )
    monkeypatch.setattr(f"{place}.LIBRARY", None)
    assert choose(records, cpu).reason.endswith(
        "decoding whole images; apt-get install libjpeg-dev g++ and pip install again, to decode what is looked at"
    )
