"""What an optional package is needed for: tests of it are skipped without it, never under EQUIMOD_REQUIRE_EXTRAS=1."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


def needs(extra: str, *, module: bool = False) -> None:
    """Skip the test, or the whole `module`, where the package of an extra is not installed."""
    packages = {"dali": "nvidia.dali", "ffcv": "ffcv", "imagenet": "scipy", "kornia": "kornia"}
    try:
        found = find_spec(packages[extra]) is not None
    except ModuleNotFoundError:  # the parent package is missing
        found = False
    if not found and os.environ.get("EQUIMOD_REQUIRE_EXTRAS") != "1":
        pytest.skip(f"needs pip install 'equimod[{extra}]'", allow_module_level=module)
