"""Checkpoints without pickle: safetensors and JSON, written durably, the two newest kept.

`checkpoints/step-00001234/` holds model.safetensors (with the statistics of the parameters), optimizer.safetensors
(momentum by parameter name, what AdamW keeps by "exp_avg/NAME" and so on), config.yaml, state.json (cursor, scaler,
fingerprint of the records, code and libraries), and digests.json, by which a change of any of them is noticed before it
is used. Nothing random is stored: every draw is keyed, so the cursor's two integers and the seed in config.yaml are all
that a resume needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from equimod.pipelines.durable import POINTER, complete, durable_dir, durable_file, pointed, rotate
from equimod.pipelines.errors import EquimodError
from equimod.pipelines.records.protocol import Fingerprint
from equimod.pipelines.sampler import Cursor
from equimod.pipelines.stored import DIGESTS, DamagedFileError, Digests, FileDigest, decode_json, read_json
from equimod.train.config import CONFIG, Config, read_recipe
from equimod.train.environment import Environment
from equimod.train.loop import TrainState
from equimod.train.optimizers import kept_tensors, restore_tensors

FORMAT = 4
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
FILES = (MODEL, OPTIMIZER, STATE, CONFIG)
T = TypeVar("T")


class CheckpointError(EquimodError):
    """A checkpoint that cannot be used: the message names the file and the remedy, in one line."""


@dataclass(frozen=True)
class State:
    """What a checkpoint holds beside tensors and settings."""

    cursor: Cursor
    scaler: dict[str, int | float]  # of the gradients; empty without one
    records: Fingerprint
    environment: Environment
    format: int = FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose small files are read and whole; its tensors are compared with their digests when read."""

    path: Path
    state: State
    config: Config
    digests: Digests

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Raises DamagedFileError where there is none, and where it is damaged or of another format, ConfigError where
        this version has no such settings."""
        if not path.is_dir():
            raise DamagedFileError(f"{path} is no checkpoint: it is {'no folder' if path.exists() else 'not there'}")
        if not (path / DIGESTS).exists() and (path / STATE).exists():
            found = read_json(path / STATE, _Format).format
            if found != FORMAT:
                raise DamagedFileError(f"{path} has format {found}, and this version reads {FORMAT}")
        digests = Digests.read(path / DIGESTS)
        digests.check(path, (CONFIG,))
        state = decode_json(digests.read_file(path, STATE), State, str(path / STATE))
        return cls(path, state, read_recipe(path / CONFIG), digests)

    def check(self) -> Checkpoint:
        """Itself, after all files were compared with their digests. Raises DamagedFileError."""
        self.digests.check(self.path, FILES)
        return self

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files. Raises DamagedFileError where it does not have its digest."""
        try:
            return safetensors.torch.load(self.digests.read_file(self.path, name))
        except SafetensorError as error:
            raise DamagedFileError(f"{self.path / name} is damaged ({error})") from error

    @property
    def identity(self) -> dict[str, Any]:
        """What it is known by, beside results of it."""
        cursor, weights = self.state.cursor, self.digests.files[MODEL].sha256
        return {"checkpoint": self.path.name, "weights": weights, "epoch": cursor.epoch, "step_in_epoch": cursor.step}


@dataclass(frozen=True)
class _Format:
    format: int


def save(
    folder: Path,
    cursor: Cursor,
    global_step: int,
    trained: TrainState,
    config: Config,
    records: Fingerprint,
) -> None:
    """Write the checkpoint of a step below `folder`, point to it, and drop all but the two newest.

    Raises OSError on a full disk; what was there before is then untouched.
    """
    path = step_folder(folder, global_step)
    folder.mkdir(parents=True, exist_ok=True)
    state = State(cursor, trained.grad_cache.scaler.state_dict(), records, Environment.of(config))
    contents = {
        MODEL: serialized(trained.model.state_dict()),
        OPTIMIZER: serialized(dict(kept_tensors(trained.model, trained.optimizer))),
        CONFIG: config.to_yaml().encode(),
        STATE: json.dumps(asdict(state), indent=2).encode(),
    }
    with durable_dir(path) as partial:
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        digests = Digests({name: FileDigest.of_content(content) for name, content in contents.items()})
        (partial / DIGESTS).write_bytes(digests.pack())
    rotate(folder, path.name)


def step_folder(folder: Path, global_step: int) -> Path:
    """Where the checkpoint of a step lies below `folder`."""
    return folder / f"step-{global_step:08d}"


def first_sound(folder: Path, load: Callable[[Path], T], say: Callable[[str], None]) -> T | None:
    """What `load` makes of the newest checkpoint below `folder` for which it raises no DamagedFileError; None where
    there is none at all.

    Tells `say` what was skipped. A run may write and remove checkpoints meanwhile. CheckpointError where no checkpoint
    is sound.
    """
    while True:
        skipped, names = [], pointed(folder)
        if names is None and (folder / POINTER).exists():
            skipped.append(f"{folder / POINTER} is damaged")
        for path in dict.fromkeys([*(folder / name for name in names or ()), *complete(folder)]):
            try:
                found = load(path)
            except DamagedFileError as error:
                skipped.append(str(error))
                continue
            for fault in skipped:
                say(f"skipped: {fault}")
            return found
        if pointed(folder) == names:
            break
    if skipped:
        raise CheckpointError(f"{folder} holds no sound checkpoint: {skipped[0]}; train anew with --overwrite")
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, all of it sound. Raises CheckpointError."""
    try:
        return Checkpoint.open(path).check()
    except DamagedFileError as error:
        raise unusable(error) from error


def hold_model(folder: Path, path: Path | None, say: Callable[[str], None]) -> tuple[Checkpoint, dict[str, Tensor]]:
    """The checkpoint at `path`, or the newest sound one of the run in `folder`, with its model's tensors, read at once:
    a run that goes on removes it. `say` hears what was skipped. Raises CheckpointError."""
    if path is not None:
        try:
            return _with_model(path)
        except DamagedFileError as error:
            raise unusable(error) from error
    found = first_sound(folder / "checkpoints", _with_model, say)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint; train until the first one is written")
    return found


def _with_model(path: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    checkpoint = Checkpoint.open(path)
    return checkpoint, checkpoint.tensors(MODEL)


def unusable(error: DamagedFileError) -> CheckpointError:
    """The error about a checkpoint that was asked for by name."""
    return CheckpointError(f"{error}; give another, or none: the newest sound one is then taken")


def restore(
    checkpoint: Checkpoint, trained: TrainState, records: Fingerprint, *, resume_anyway: bool = False
) -> Cursor:
    """Load a checkpoint into what was built from the same configuration. Returns where it stands.

    Raises CheckpointError where it was damaged meanwhile, or is of other records; with `resume_anyway`, of other
    samples, labels or sizes.
    """
    path, state = checkpoint.path, checkpoint.state
    if state.records.table != records.table:
        raise CheckpointError(f"{path} was trained on other records; give --data the same ones, or another --output")
    if state.records != records and not resume_anyway:
        raise CheckpointError(
            f"{path} was trained on images of other content or date; give --data the same ones, or --resume-anyway "
            "where they are the same in another format or a copy"
        )
    try:
        model, optimizer = checkpoint.tensors(MODEL), checkpoint.tensors(OPTIMIZER)
    except DamagedFileError as error:
        raise unusable(error) from error
    load_model(path, model, trained.model)
    try:
        restore_tensors(optimizer, trained.model, trained.optimizer)
        if state.scaler:
            trained.grad_cache.scaler.load_state_dict(state.scaler)
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit the configured optimizer: {error}; give the run's config"
        ) from error
    return state.cursor


def load_model(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Load weights and buffers of the checkpoint at `path`. Raises CheckpointError where they do not fit the model."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit the configured model: {fault}; give the run's config") from error


def export_encoder(encoder: nn.Module, path: Path) -> None:
    """Write the encoder alone, under the key names of torchvision or timm, durably."""
    with durable_file(path) as handle:
        handle.write(serialized(encoder.state_dict()))


def serialized(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a file of safetensors."""
    # Not safetensors' own save_file, which reports a full disk as an error of its own kind, without the errno.
    data: bytes = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return data
