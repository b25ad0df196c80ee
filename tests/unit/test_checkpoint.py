"""What a checkpoint holds comes back; one that changed in any bit is refused, and the one before it is taken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from equimod.pipelines.durable import go_back
from equimod.pipelines.records.protocol import Fingerprint
from equimod.pipelines.sampler import Cursor
from equimod.pipelines.stored import DIGESTS, DamagedFileError, Digests
from equimod.train import checkpoint
from equimod.train.checkpoint import (
    FILES,
    Checkpoint,
    CheckpointError,
    first_sound,
    open_checkpoint,
    restore,
    save,
    step_folder,
)
from equimod.train.config import RECIPES, Config, read_recipe
from equimod.train.distributed import DistInfo
from equimod.train.loop import NotFiniteError, TrainState, assert_finite
from equimod.train.run import build_train_state

RECORDS = Fingerprint("samples", "their bytes", "their dates")


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
    save(tmp_path, Cursor(1, 2), 12, state, config, RECORDS)
    return step_folder(tmp_path, 12)


def test_cursor_weights_and_scale_come_back(saved: Path, config: Config) -> None:
    state = _state(replace(config, seed=1))
    assert restore(open_checkpoint(saved), state, RECORDS) == Cursor(1, 2)
    assert state.grad_cache.scaler.get_scale() == 512.0
    wanted = _state(config).model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in state.model.state_dict().items())


def test_other_records_are_refused(saved: Path, config: Config) -> None:
    with pytest.raises(CheckpointError, match="was trained on other records; give --data the same ones"):
        restore(open_checkpoint(saved), _state(config), replace(RECORDS, table="other"), resume_anyway=True)


@pytest.mark.parametrize("other", [{"content": "other"}, {"dates": "other"}])
def test_the_same_samples_with_other_contents_go_on_when_told_to(
    saved: Path, config: Config, other: dict[str, str]
) -> None:
    with pytest.raises(
        CheckpointError, match="on images of other content or date; give --data the same ones, or --res"
    ):
        restore(open_checkpoint(saved), _state(config), replace(RECORDS, **other))
    restore(open_checkpoint(saved), _state(config), replace(RECORDS, **other), resume_anyway=True)


def test_another_model_is_refused(saved: Path, config: Config) -> None:
    wider = _state(replace(config, encoder=replace(config.encoder, width=16)))
    with pytest.raises(CheckpointError, match=r"does not fit the configured model: .*; give the run's config"):
        restore(open_checkpoint(saved), wider, RECORDS)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: shutil.rmtree(path), "is no checkpoint: it is not there"),
        (lambda path: (path / DIGESTS).unlink(), r"digests\.json cannot be read: No such file or directory"),
        (lambda path: (path / DIGESTS).write_bytes(b"[]"), r"digests\.json is damaged \(Expected `object`"),
        (lambda path: (path / "state.json").unlink(), r"state\.json cannot be read: No such file or directory"),
        (lambda path: (path / "optimizer.safetensors").write_bytes(b""), r"optimizer\.safetensors is damaged: it does"),
    ],
)
def test_one_that_is_not_whole_is_refused_with_a_remedy(
    saved: Path, change: Callable[[Path], object], fault: str
) -> None:
    change(saved)
    with pytest.raises(CheckpointError, match=f"{fault}.*; give another, or none: the newest sound one is then taken"):
        open_checkpoint(saved)


@pytest.mark.parametrize("momenta", [{"encoder.conv": (3,)}, {"encoder.conv1.weight": (1,)}])
def test_momenta_of_another_model_are_refused_even_with_their_digest(
    saved: Path, config: Config, momenta: dict[str, tuple[int, ...]]
) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in momenta.items()}
    safetensors.torch.save_file(tensors, saved / "optimizer.safetensors")
    (saved / DIGESTS).write_bytes(Digests.of(saved, FILES).pack())
    with pytest.raises(CheckpointError, match=r"does not fit the configured optimizer: there is no parameter for enc"):
        restore(open_checkpoint(saved), _state(config), RECORDS)


def test_one_of_an_earlier_format_says_so(saved: Path) -> None:
    (saved / DIGESTS).unlink()
    (saved / "state.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, and this version reads 4; give another"):
        open_checkpoint(saved)


@pytest.mark.parametrize("content", [b"[]", b"{", b"{}", b'{"format": "x"}', b"\xe9", b"[" * 100_000])
def test_a_state_of_another_form_is_one_error_even_with_its_digest(saved: Path, content: bytes) -> None:
    """As another program could have written it."""
    (saved / "state.json").write_bytes(content)
    (saved / DIGESTS).write_bytes(Digests.of(saved, FILES).pack())
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        open_checkpoint(saved)


def test_every_flipped_bit_is_noticed(saved: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty in each file, most of them in tensors: resume and evaluation read what was compared, and nothing else."""
    monkeypatch.setattr(checkpoint, "read_recipe", lambda path: config)  # which takes a while, after the comparison
    draw = np.random.default_rng(0)
    for path in sorted(saved.iterdir()):
        content = path.read_bytes()
        for place in draw.integers(8 * len(content), size=40).tolist():
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(DamagedFileError, match=path.name):
                Checkpoint.open(saved).check()
            if path.name in ("model.safetensors", "optimizer.safetensors"):
                with pytest.raises(DamagedFileError, match=path.name):
                    Checkpoint.open(saved).tensors(path.name)
        path.write_bytes(content)
    assert Checkpoint.open(saved).check().identity["epoch"] == 1


@pytest.fixture
def two(saved: Path, config: Config) -> Path:
    """The folder of two checkpoints."""
    save(saved.parent, Cursor(2, 0), 20, _state(config), config, RECORDS)
    return saved.parent


def _found(folder: Path) -> tuple[str | None, list[str]]:
    said: list[str] = []
    found = first_sound(folder, lambda path: Checkpoint.open(path).check(), said.append)
    return found and found.path.name, said


def test_the_newest_is_taken_where_it_is_sound(two: Path) -> None:
    assert _found(two) == ("step-00000020", [])


def test_the_one_before_is_taken_where_the_newest_is_damaged_or_gone_and_that_is_said(two: Path) -> None:
    with (two / "step-00000020" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    name, [said] = _found(two)
    assert name == "step-00000012"
    assert said.startswith("skipped: ")
    assert "step-00000020/model.safetensors is damaged" in said
    shutil.rmtree(two / "step-00000020")
    name, [said] = _found(two)
    assert name == "step-00000012"
    assert "step-00000020 is no checkpoint: it is not there" in said


@pytest.mark.parametrize(
    "pointer",
    [b"", b"\xff\xfe\0", b"../elsewhere\nstep-1/..", b"step-00000021", b"step-\x10020\nstep-00000012", None],
)
def test_a_pointer_that_names_nothing_here_is_as_none(two: Path, pointer: bytes | None) -> None:
    (two / "newest").unlink()
    if pointer is not None:
        (two / "newest").write_bytes(pointer)
    name, said = _found(two)
    assert name == "step-00000020"
    assert len(said) == (pointer is not None)


def test_without_a_sound_one_it_is_said_which_was_the_newest(two: Path) -> None:
    for path in two.glob("step-*"):
        (path / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"no sound checkpoint: .*20/state\.json is damaged.*; train anew with"):
        _found(two)


def test_one_that_a_running_training_removes_meanwhile_is_no_fault(two: Path, config: Config) -> None:
    def load(path: Path) -> str:
        if not (two / "step-00000040").exists():
            for step in (30, 40):  # which removes both that are there
                save(two, Cursor(step, 0), step, _state(config), config, RECORDS)
        return Checkpoint.open(path).path.name

    said: list[str] = []
    assert first_sound(two, load, said.append) == "step-00000040"


def test_going_back_forgets_what_came_after(two: Path, config: Config) -> None:
    go_back(two, "step-00000012")
    assert sorted(path.name for path in two.iterdir()) == ["newest", "step-00000012"]
    save(two, Cursor(2, 0), 20, _state(config), config, RECORDS)
    assert _found(two) == ("step-00000020", [])


@pytest.mark.parametrize("where", ["weight", "momentum", "running statistic"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved(config: Config, where: str, value: float) -> None:
    state = _state(config)
    weight = state.model.encoder.conv1.weight
    state.optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    alone = DistInfo(0, 0, 1, torch.device("cpu"))
    assert_finite(state, 3, 0.5, "step-2", alone)
    tensor = {
        "weight": weight,
        "momentum": state.optimizer.state[weight]["momentum_buffer"],
        "running statistic": state.model.encoder.bn1.running_var,
    }[where]
    with torch.no_grad():
        tensor[3].fill_(value)
    named = {"weight": "encoder.conv1.weight", "momentum": "momentum of encoder.conv1.weight"}
    fault = f"{named.get(where, 'encoder.bn1.running_var')} is not finite in step 3 (learning rate 0.5); last good"
    with pytest.raises(NotFiniteError, match=f"{re.escape(fault)}.* or --precision fp32$"):
        assert_finite(state, 3, 0.5, "step-2", alone)
