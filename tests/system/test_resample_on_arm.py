"""The NEON form of the compiled kernel, cross-compiled and emulated, beside torch's and NumPy's, byte for byte.

Images and outputs lie beside memory that traps, so a byte too many, read or written, ends the program.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from needs import ARM_COMPILER, ARM_PACKAGES, arm_emulator, needs_arm
from numpy.typing import NDArray
from torch_resize import random_box, random_image, random_part, with_torch

from equimod.pipelines.resize import crop_specs
from equimod.pipelines.resize_part import resize_part

needs_arm(module=True)
pytestmark = pytest.mark.ci

NATIVE = Path(__file__).parents[2] / "pipelines" / "native"
HARNESS = Path(__file__).parents[1] / "neon_harness.c"
FLAGS = ["-O3", "-ffp-contract=off", "-static", "-Wall", "-Wextra", "-Werror", "-Wl,--wrap=passes_neon", f"-I{NATIVE}"]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs neon_harness.c, which includes resample.c itself."""
    emulator = arm_emulator()
    assert emulator, f"nothing runs programs of 64-bit ARM: apt-get install {ARM_PACKAGES}"
    program = tmp_path_factory.mktemp("neon") / "harness"
    sources = [HARNESS, *sorted(NATIVE.glob("resample_*.c"))]
    subprocess.run([ARM_COMPILER, *FLAGS, "-o", str(program), *map(str, sources), "-lm"], check=True)
    return [emulator, str(program)]


def _case(image: NDArray[np.uint8], boxes: list[tuple[float, ...]], size: int, mode: str, at_end: bool) -> bytes:
    (height, width, _), stride = image.shape, image.strides[0]
    first_to_last = np.lib.stride_tricks.as_strided(image, ((height - 1) * stride + 3 * width,), (1,))
    header = np.array([width, height, stride, len(boxes), at_end], dtype=np.int64)
    specs = crop_specs(np.array(boxes), size, mode)
    return header.tobytes() + specs.tobytes() + first_to_last.tobytes()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_bytes_are_those_of_torch_and_of_numpy(harness: list[str], mode: str) -> None:
    rng, cases, expected = np.random.default_rng(0), [], []
    for number in range(150):
        width, height = (int(side) for side in rng.integers(1, 701 if number % 3 else 40, 2))
        image, size = random_image(rng, width, height), int(rng.choice([1, 7, 32, 96, 224]))
        boxes = [(0, 0, width, height), random_box(rng, width, height), random_part(rng, width, height)]
        cases.append(_case(image, boxes, size, mode, at_end=number % 4 > 0))
        expected += [((width, height), box, size, with_torch(image, box, size, mode)) for box in boxes[:2]]
        part = resize_part(image, boxes[2], (size, size), (0, 0, size), mode == "bicubic")
        expected.append(((width, height), boxes[2], size, part))
    done = subprocess.run(harness, input=b"".join(cases), capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr.decode()}"
    found = np.frombuffer(done.stdout, dtype=np.uint8)
    for shape, box, size, wanted in expected:
        pixels, found = found[: wanted.size].reshape(wanted.shape), found[wanted.size :]
        np.testing.assert_array_equal(pixels, wanted, str((shape, box, size)))
    assert found.size == 0
