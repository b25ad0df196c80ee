"""A checkpoint that cannot be used is refused with the file and the remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from equimod.pipelines.sampler import Cursor
from equimod.train import checkpoint
from equimod.train.checkpoint import CheckpointError
from equimod.train.config import RECIPES, Config, read_recipe
from equimod.train.distributed import DistInfo
from equimod.train.loop import TrainState
from equimod.train.run import build_train_state


class Contents:
    size = np.array([[64, 64]], dtype=np.int32)
    classes: list[str] = ["one"]  # noqa: RUF012


@pytest.fixture(scope="module")
def config() -> Config:
    config = read_recipe(RECIPES / "simclr_shapes.yaml")
    narrow = replace(config.encoder, width=8), replace(config.simclr, hidden=(8,), dim=8)
    return replace(config, encoder=narrow[0], simclr=narrow[1], precision="fp16")


def _state(config: Config) -> TrainState:
    return build_train_state(config, Contents(), 10, DistInfo(0, 0, 1, torch.device("cpu")))


@pytest.fixture
def saved(config: Config, tmp_path: Path) -> Path:
    state = _state(config)
    state.grad_cache.scaler.scale(torch.ones(()))  # which makes its scale
    state.grad_cache.scaler.update(512.0)
    checkpoint.save(tmp_path, Cursor(1, 2), 12, state, config, "these records")
    return checkpoint.step_folder(tmp_path, 12)


def test_cursor_weights_and_scale_come_back(saved: Path, config: Config) -> None:
    state = _state(replace(config, seed=1))
    assert checkpoint.restore(saved, state, "these records") == Cursor(1, 2)
    assert state.grad_cache.scaler.get_scale() == 512.0
    wanted = _state(config).model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in state.model.state_dict().items())


def test_other_records_are_refused(saved: Path, config: Config) -> None:
    with pytest.raises(CheckpointError, match="was trained on other records; give --data the same ones"):
        checkpoint.restore(saved, _state(config), "other records")


def test_another_model_is_refused(saved: Path, config: Config) -> None:
    wider = _state(replace(config, encoder=replace(config.encoder, width=16)))
    with pytest.raises(CheckpointError, match=r"does not fit the configured model: .*; give the run's config"):
        checkpoint.restore(saved, wider, "these records")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no checkpoint: No such file or directory; give a folder below checkpoints/"),
        ("{", r"state\.json is damaged .*; resume from the other checkpoint"),
        (json.dumps({"format": 1}), "has format 1, this version reads 2; train it anew"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused(saved: Path, content: str | None, message: str) -> None:
    (saved / "state.json").unlink()
    if content is not None:
        (saved / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_state(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_tensors_that_cannot_be_read_are_refused(saved: Path, config: Config, name: str) -> None:
    (saved / name).write_bytes((saved / name).read_bytes()[:4])
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: .*; resume from the other checkpoint"):
        checkpoint.restore(saved, _state(config), "these records")
