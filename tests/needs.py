"""What is optional: tests that need it are skipped without it, never under EQUIMOD_REQUIRE_EXTRAS=1."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest

from equimod.pipelines.kernel import library

ARM_COMPILER = "aarch64-linux-gnu-gcc"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARM_PACKAGES = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"


def needs_compiler(*, module: bool = False) -> None:
    """Skip the test, or the whole `module`, where nothing can be compiled."""
    if shutil.which("g++") is None:
        _skip("apt-get install g++, then pip install -e .", module)


def needs_jpeg(*, module: bool = False) -> None:
    """Skip the test, or the whole `module`, where the decoder of regions was not compiled."""
    if library("_decode") is None:
        _skip("apt-get install libjpeg-dev g++, then pip install -e .", module)


def needs_arm(*, module: bool = False) -> None:
    """Skip the test, or the whole `module`, where nothing can be compiled for 64-bit ARM, or nothing runs it."""
    if shutil.which(ARM_COMPILER) is None or arm_emulator() is None:
        _skip(f"apt-get install {ARM_PACKAGES}", module)


def arm_emulator() -> str | None:
    """The program that runs one of 64-bit ARM; None where there is none."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def needs_browser() -> None:
    """Skip the test where there is no Chromium to look at pages with."""
    if browser() is None:
        _skip("apt-get install chromium", False)


def browser() -> str | None:
    """The program that is a browser; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def needs(extra: str, *, module: bool = False) -> None:
    """Skip the test, or the whole `module`, where the package of an extra is not installed."""
    packages = {
        "dali": "nvidia.dali",
        "ffcv": "ffcv",
        "imagenet": "scipy",
        "kornia": "kornia",
        "mlflow": "mlflow",
        "neighbours": "faiss",
        "onnx": "onnxscript",
        "peers": "kornia_rs",
        "robustness": "imagecorruptions",
        "timm": "timm",
        "triton": "triton",
        "wandb": "wandb",
    }
    try:
        found = find_spec(packages[extra]) is not None
    except ModuleNotFoundError:  # the parent package is missing
        found = False
    if not found:
        _skip("a torch built for CUDA" if extra == "triton" else f"pip install 'equimod[{extra}]'", module)


def _skip(remedy: str, module: bool) -> None:
    if os.environ.get("EQUIMOD_REQUIRE_EXTRAS") != "1":
        pytest.skip(f"needs {remedy}", allow_module_level=module)
