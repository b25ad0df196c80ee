"""Checkpoints without pickle: safetensors and JSON, written durably, the two newest kept.

`checkpoints/step-00001234/` holds model.safetensors (with the statistics of the parameters), optimizer.safetensors
(momentum by parameter name), config.yaml, and state.json (cursor, scaler, fingerprint of the records). Nothing random
is stored: every draw is keyed, so the cursor's two integers and the seed in config.yaml are all that a resume needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from equimod.pipelines.durable import durable_dir, durable_file, kept, rotate
from equimod.pipelines.errors import EquimodError
from equimod.pipelines.sampler import Cursor
from equimod.train.config import CONFIG, Config
from equimod.train.loop import TrainState

FORMAT = 2


class CheckpointError(EquimodError):
    """A checkpoint that cannot be used: the message names the file and the remedy, in one line."""


def save(
    folder: Path,
    cursor: Cursor,
    global_step: int,
    trained: TrainState,
    config: Config,
    records: str,
) -> None:
    """Write the checkpoint of a step below `folder`, point to it, and drop all but the two newest.

    `records` is the fingerprint of the training records. Raises OSError on a full disk; what was there before is then
    untouched.
    """
    path = step_folder(folder, global_step)
    folder.mkdir(parents=True, exist_ok=True)
    with durable_dir(path) as partial:
        (partial / "model.safetensors").write_bytes(_serialized(trained.model.state_dict()))
        (partial / "optimizer.safetensors").write_bytes(_serialized(dict(_momenta(trained.model, trained.optimizer))))
        (partial / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
        state = {
            "format": FORMAT,
            "cursor": asdict(cursor),
            "scaler": trained.grad_cache.scaler.state_dict(),
            "records": records,
            "versions": {name: version(name) for name in ("equimod", "torch", "torchvision", "numpy")},
        }
        (partial / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    rotate(folder, path.name)


def step_folder(folder: Path, global_step: int) -> Path:
    """Where the checkpoint of a step lies below `folder`."""
    return folder / f"step-{global_step:08d}"


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`, None where there is none."""
    checkpoints = kept(folder)
    return checkpoints[0] if checkpoints else None


def restore(path: Path, trained: TrainState, records: str) -> Cursor:
    """Load a checkpoint into what was built from the same configuration. Returns where it stands.

    Raises CheckpointError where it is damaged, of another format, or of other records.
    """
    state = read_state(path)
    if state["records"] != records:
        raise CheckpointError(f"{path} was trained on other records; give --data the same ones, or another --output")
    load_model(path, trained.model)
    parameters = dict(trained.model.named_parameters())
    for name, buffer in _load(path / "optimizer.safetensors").items():
        trained.optimizer.state[parameters[name]]["momentum_buffer"] = torch.zeros_like(parameters[name]).copy_(buffer)
    if state["scaler"]:
        trained.grad_cache.scaler.load_state_dict(state["scaler"])
    return Cursor(**state["cursor"])


def load_model(path: Path, model: nn.Module) -> None:
    """Load the weights and buffers of a checkpoint. Raises CheckpointError where they do not fit the model."""
    try:
        model.load_state_dict(_load(path / "model.safetensors"))
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path} does not fit the configured model: {fault}; give the run's config") from error


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises CheckpointError where it is missing, damaged or of another format."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint: {error.strerror}; give a folder below checkpoints/") from error
    except ValueError as error:
        raise CheckpointError(f"{path}/state.json is damaged ({error}); resume from the other checkpoint") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')}, this version reads {FORMAT}; train it anew")
    return state


def export_encoder(encoder: nn.Module, path: Path) -> None:
    """Write the encoder alone, under torchvision's key names, durably."""
    with durable_file(path) as handle:
        handle.write(_serialized(encoder.state_dict()))


def _serialized(tensors: dict[str, Tensor]) -> bytes:
    # Not safetensors' own save_file, which reports a full disk as an error of its own kind, without the errno.
    data: bytes = serialize({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return data


def _momenta(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if "momentum_buffer" in optimizer.state.get(parameter, {}):
            yield name, optimizer.state[parameter]["momentum_buffer"]


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; resume from the other checkpoint") from error
