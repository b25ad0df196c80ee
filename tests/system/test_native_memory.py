"""The compiled kernels under AddressSanitizer: no byte beside their own is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from needs import needs_compiler, needs_jpeg

pytestmark = pytest.mark.ci
SOURCE = Path(__file__).parents[2] / "pipelines" / "native" / "decode.c"
DECODE_DAMAGED = """
import ctypes, io, sys
import numpy as np
from PIL import Image
from equimod.pipelines import decode
library = ctypes.CDLL(sys.argv[1])
for name in ("equimod_decode", "equimod_decode_whole"):
    getattr(library, name).argtypes = getattr(decode.LIBRARY, name).argtypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
rng, results = np.random.default_rng(6), [0, 0]
for number in range(int(sys.argv[2])):
    width, height = (int(side) for side in rng.integers(1, 90, 2))
    file = io.BytesIO()
    pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    pixels.save(file, "JPEG", subsampling=int(rng.integers(3)), progressive=bool(rng.integers(2)))
    jpeg = np.frombuffer(file.getvalue(), np.uint8).copy()
    for place in rng.integers(0, len(jpeg), number % 4):
        jpeg[place] = rng.integers(256)
    jpeg = jpeg[: int(rng.integers(0, len(jpeg) + 1)) if number % 7 == 0 else None]
    x0, x1 = sorted(rng.integers(0, width + 1, 2).tolist())
    y0, y1 = sorted(rng.integers(0, height + 1, 2).tolist())
    content, out = libc.malloc(max(1, len(jpeg))), libc.malloc(3 * width * height)  # not a byte more than is needed
    ctypes.memmove(content, jpeg.ctypes.data, len(jpeg))
    results[library.equimod_decode(content, len(jpeg), width, height, x0, y0, x1, y1, 16, out)] += 1
    reason = ctypes.create_string_buffer(200)
    for whole in (out, None):
        found = library.equimod_decode_whole(content, len(jpeg), width, height, 16, whole, reason)
        assert (found < 0) == bool(reason.value)
    libc.free(content)
    libc.free(out)
print("done", *results)
"""


def test_damaged_files_touch_no_byte_beside_their_own(tmp_path: Path) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, in memory that ends with the last byte."""
    needs_jpeg()
    library = tmp_path / "decode.so"
    flags = ["-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE), "-ljpeg"], check=True)
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    done = subprocess.run(
        [sys.executable, "-c", DECODE_DAMAGED, str(library), "1500"],
        env=os.environ | {"LD_PRELOAD": asan.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    word, sound, refused = done.stdout.split()
    assert word == "done"
    assert min(int(sound), int(refused)) > 300


NATIVE = Path(__file__).parents[2] / "pipelines" / "native"
RESAMPLE = """
import ctypes, sys
import numpy as np
from equimod.pipelines.kernel import Kernel
from equimod.pipelines.resize import CropResizer, crop_specs
library = ctypes.CDLL(sys.argv[1])
rng = np.random.default_rng(3)
sets = Kernel(library).instruction_sets
kernels = [Kernel(library, name) for name in sets]
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def exact(height, width, stride, offset):  # memory with not a byte more than the last pixel needs, at any alignment
    count = offset + (height - 1) * stride + 3 * width
    memory = libc.malloc(count)
    flat = np.frombuffer((ctypes.c_uint8 * count).from_address(memory), np.uint8)
    return memory, np.lib.stride_tricks.as_strided(flat[offset:], (height, width, 3), (stride, 3, 1))

for number in range(int(sys.argv[2])):
    width, height = (int(side) for side in rng.integers(1, 300 if number % 2 else 20, 2))
    memory, image = exact(height, width, 3 * width + int(rng.integers(0, 50)), int(rng.integers(0, 64)))
    image[:] = rng.integers(0, 256, image.shape)
    w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
    box = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    if number % 3 == 0:  # a box with fractions, which may end with the image
        x, y = rng.random(2) * [width, height] * rng.integers(2, size=2)
        w, h = np.where(rng.integers(2, size=2), 1, rng.random(2)) * [width - x, height - y]
        box = x, y, min(w, width - x), min(h, height - y)
    size = int(rng.integers(1, 60))
    results = []
    for one in kernels:
        out, target = exact(size, size, 3 * size, int(rng.integers(0, 64)))
        specs = crop_specs(np.array([box]), size, ["bicubic", "bilinear"][number % 2])[None]
        CropResizer(specs, [target[None]], one)(0, image)
        results.append(target.copy())
        libc.free(out)
    assert all((result == results[0]).all() for result in results), (image.shape, box, size)
    libc.free(memory)
print("done", sets)
"""


def test_no_byte_beside_the_images_is_touched(tmp_path: Path) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, in memory that ends with the last pixel."""
    needs_compiler()
    library = tmp_path / "resample.so"
    flags = ["-O1", "-g", "-ffp-contract=off", "-fPIC", "-shared", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
    sources = [str(path) for path in sorted(NATIVE.glob("resample*.c"))]
    subprocess.run(["gcc", *flags, "-o", str(library), *sources, "-lm"], check=True)
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    environment = {"LD_PRELOAD": asan.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", RESAMPLE, str(library), "300"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("done")
