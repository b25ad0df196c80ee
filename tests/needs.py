"""What is optional: tests that need it are skipped without it, never under EQUIMOD_REQUIRE_EXTRAS=1."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest


def needs_compiler(*, module: bool = False) -> None:
    """Skip the test, or the whole `module`, where nothing can be compiled."""
    if shutil.which("g++") is None:
        _skip("apt-get install g++, then pip install -e .", module)


def needs(extra: str, *, module: bool = False) -> None:
    """Skip the test, or the whole `module`, where the package of an extra is not installed."""
    packages = {"dali": "nvidia.dali", "ffcv": "ffcv", "imagenet": "scipy", "kornia": "kornia"}
    try:
        found = find_spec(packages[extra]) is not None
    except ModuleNotFoundError:  # the parent package is missing
        found = False
    if not found:
        _skip(f"pip install 'equimod[{extra}]'", module)


def _skip(remedy: str, module: bool) -> None:
    if os.environ.get("EQUIMOD_REQUIRE_EXTRAS") != "1":
        pytest.skip(f"needs {remedy}", allow_module_level=module)
