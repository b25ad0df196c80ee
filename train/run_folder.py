"""The folder of a run: whether it may be used, which checkpoint to resume from, and taking hold of it.

Everything is checked before anything is deleted or written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from equimod.pipelines.durable import FolderBusyError, durable_file, go_back, locked, prune, remove_leftovers
from equimod.train.checkpoint import Checkpoint, first_sound, open_checkpoint
from equimod.train.config import CONFIG, Config, ConfigError, differences, read_recipe
from equimod.train.environment import Environment
from equimod.train.trackers import ID_FILES

CHECKPOINTS = "checkpoints"
FOLDERS = (CHECKPOINTS, "tensorboard", "figures", "features", "unfinished", "export", "wandb")
FILES = ("metrics.jsonl", "encoder.safetensors", "eval.json", "report.html", *ID_FILES)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the folder of a run for this process, and make it where it is missing; empty, it is removed again.

    Raises ConfigError where another run holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            yield
    except FolderBusyError as error:
        raise ConfigError(f"{error}, or give another --output") from error
    finally:
        with suppress(OSError):  # not empty any more
            for path in made:
                path.rmdir()


def checkpoint_to_resume(config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that the configuration asks to go on from, None for a new run. Changes nothing.

    With --resume auto it is the newest sound one; `say` hears what was skipped, and what of code and libraries is other
    than it was. Raises ConfigError where the output folder holds a run that was not asked for, or the run to resume had
    another configuration, CheckpointError where the checkpoint cannot be used, OtherEnvironmentError for code or
    libraries that may move its numbers.
    """
    folder = config.run_folder()
    checkpoint: Checkpoint | None = None
    if config.resume == "auto":
        checkpoint = first_sound(folder / CHECKPOINTS, lambda path: Checkpoint.open(path).check(), say)
    elif config.resume != "never":
        checkpoint = open_checkpoint(Path(config.resume))
    has_run = (folder / CONFIG).exists()
    _refuse_others_folder(config, folder, has_run)
    is_its_own = checkpoint is not None and checkpoint.path.resolve().is_relative_to(folder.resolve())
    if has_run and not (config.overwrite or config.resume == "auto" or is_its_own):
        raise ConfigError(f"{folder} holds a run; give --resume auto to go on, --overwrite to delete it, or --output")
    if config.resume != "never" and (checkpoint or has_run):
        changed = differences(config, checkpoint.config if checkpoint else read_recipe(folder / CONFIG))
        if changed:
            raise ConfigError(
                f"cannot resume {checkpoint.path if checkpoint else folder} with another configuration: "
                f"{', '.join(changed)}; give the same settings, or another --output"
            )
    if checkpoint:
        _compare_environments(config, checkpoint, say)
    return checkpoint


def _refuse_others_folder(config: Config, folder: Path, has_run: bool) -> None:
    """Raise ConfigError where a run in `folder` would write into what is no run's."""
    own = [name for name in (*FOLDERS, *FILES) if (folder / name).exists()]
    if own and not has_run:
        raise ConfigError(f"{folder} holds {own[0]} and no {CONFIG}: it is no run's; give another --output")
    for path in (*(config.data or ()), *(config.val or ())):
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"{folder} lies in the images of {path}; give another --output")


def _compare_environments(config: Config, checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
    here, before = Environment.of(checkpoint.config), checkpoint.state.environment
    if not config.resume_anyway:
        here.refuse(before, "install what it had, or go on with --resume-anyway")
    if changes := here.changes(before):
        say(f"other than at the checkpoint: {', '.join(changes)}")


def take(config: Config, checkpoint: Checkpoint | None) -> None:
    """Clear the run's folder, which is held, of what is not to be kept, and put config.yaml in place."""
    folder = config.run_folder()
    if config.overwrite:
        _delete_run(folder)
    remove_leftovers(folder)
    checkpoints = folder / CHECKPOINTS
    if checkpoint is not None and checkpoint.path.resolve().parent == checkpoints.resolve():
        go_back(checkpoints, checkpoint.path.name)
    elif checkpoints.exists():
        prune(checkpoints)
    with durable_file(folder / CONFIG) as handle:
        # How the run was started is none of its settings: its config.yaml may serve as a recipe.
        started = replace(config, resume="never", resume_anyway=False, overwrite=False, config=None)
        handle.write(started.to_yaml().encode())


def _delete_run(folder: Path) -> None:
    """Delete what a run and its evaluation write, and nothing else that the folder may hold."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*FILES, CONFIG):
        (folder / name).unlink(missing_ok=True)
