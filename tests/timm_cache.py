"""Hugging Face's cache with weights for models of timm, as a download leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
from torch import Tensor

_COMMIT = "0" * 40


def cached_weights(name: str, tensors: Mapping[str, Tensor], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the weights `name`, in `cache` and found there."""
    found_in(cache, monkeypatch)
    repository = cache / f"models--timm--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(_COMMIT)
    path = repository / "snapshots" / _COMMIT / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(safetensors.torch.save(dict(tensors)))
    return path


def found_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Hugging Face's packages look into `cache`."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(file_download.try_to_load_from_cache, "__defaults__", (str(cache), None, None), raising=False)
