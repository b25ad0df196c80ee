"""The folder of a run: whether it may be used, which checkpoint to resume from, and taking hold of it.

Everything is checked before anything is deleted or written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from equimod.pipelines.durable import FolderBusyError, durable_file, locked, prune, remove_leftovers, rotate
from equimod.train import checkpoint
from equimod.train.config import CONFIG, Config, ConfigError, differences, read_recipe
from equimod.train.trackers import ID_FILES

CHECKPOINTS = "checkpoints"


def checkpoint_to_resume(config: Config) -> Path | None:
    """The checkpoint that the configuration asks to go on from, None for a new run. Changes nothing.

    Raises ConfigError where the output folder holds a run that was not asked for, or the run to resume had another
    configuration, CheckpointError where the checkpoint cannot be used.
    """
    folder = config.run_folder()
    path: Path | None = None
    if config.resume == "auto":
        path = checkpoint.newest(folder / CHECKPOINTS)
    elif config.resume != "never":
        path = Path(config.resume)
    has_run = (folder / CONFIG).exists()
    is_its_own = path is not None and path.resolve().is_relative_to(folder.resolve())
    if has_run and not (config.overwrite or config.resume == "auto" or is_its_own):
        raise ConfigError(f"{folder} holds a run; give --resume auto to go on, --overwrite to delete it, or --output")
    if path is not None:
        checkpoint.read_state(path)
    if config.resume != "never" and (path is not None or has_run):
        changed = differences(config, read_recipe((path or folder) / CONFIG))
        if changed:
            raise ConfigError(
                f"cannot resume {path or folder} with another configuration: {', '.join(changed)}; "
                "give the same settings, or another --output"
            )
    return path


@contextmanager
def claim(config: Config, resume_from: Path | None) -> Iterator[Path]:
    """The run's folder, locked for this process, cleared of what is not to be kept, with config.yaml in place.

    Raises ConfigError where another run holds it.
    """
    folder = config.run_folder()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            if config.overwrite:
                _delete_run(folder)
            remove_leftovers(folder)
            checkpoints = folder / CHECKPOINTS
            if resume_from is not None and resume_from.resolve().parent == checkpoints.resolve():
                rotate(checkpoints, resume_from.name, keep=2 if config.resume == "auto" else 1)
            elif checkpoints.exists():
                prune(checkpoints)
            with durable_file(folder / CONFIG) as handle:
                # How the run was started is none of its settings: its config.yaml may serve as a recipe.
                handle.write(replace(config, resume="never", overwrite=False, config=None).to_yaml().encode())
            yield folder
    except FolderBusyError as error:
        raise ConfigError(f"{error}, or give another --output") from error


def _delete_run(folder: Path) -> None:
    """Delete what a run and its evaluation write, and nothing else that the folder may hold."""
    for name in (CHECKPOINTS, "tensorboard", "figures", "wandb"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "encoder.safetensors", "eval.json", *ID_FILES, CONFIG):
        (folder / name).unlink(missing_ok=True)
