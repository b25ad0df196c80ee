"""What a report tells of each run, as plain data gathered from the files of its folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from equimod.train.checkpoint import Checkpoint, CheckpointError, first_sound
from equimod.train.config import Config, ConfigError, read_run
from equimod.train.environment import Environment, code_digests, digest_of
from equimod.train.evaluation.provenance import provenance
from equimod.train.evaluation.scores import read_scores
from equimod.train.evaluation.summary import training_seconds
from equimod.train.report import read_events
from equimod.train.time_spent import TimeSpent

_FILES = ("config.yaml", "metrics.jsonl", "eval.json", "encoder.safetensors", "checkpoints", "tensorboard")
_BEGUN = re.compile(r"events\.out\.tfevents\.(\d{1,11})\.")


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it."""

    folder: Path
    name: str  # of the folder, or its path where several have that name
    config: Config
    settings: dict[str, str]  # each by its path in config.yaml
    steps: list[dict[str, Any]]  # events of metrics.jsonl
    seconds: float  # of training, pauses left out
    time_spent: TimeSpent | None  # of its last process, if that ended
    scores: dict[str, float]
    evaluators: dict[str, dict[str, Any]]  # what each of them used
    scored: str | None  # the checkpoint that was evaluated
    checkpoint: Checkpoint | None  # the newest that is sound
    begun: str | None
    files: list[str]  # of the folder, that there are

    @property
    def facts(self) -> dict[str, str]:
        """What it is, in a few lines."""
        config, last = self.config, self.steps[-1] if self.steps else {"step": 0}
        facts = {
            "method": config.title,
            "data": f"{config.data_name}: {', '.join(map(str, config.data or ()))}",
            "encoder": config.encoder.title,
            "trained": f"{last['step']:,} steps of {config.batch_size:,} images, {self.seconds / 60:.1f} min",
            "begun": self.begun or "not known",
            "seed": str(config.seed),
        }
        if self.checkpoint:
            cursor, environment = self.checkpoint.state.cursor, self.checkpoint.state.environment
            facts["checkpoint"] = f"{self.checkpoint.path.name}, {cursor.epoch} of {config.epochs} epochs"
            facts["code"] = _code(environment)
            versions = {**environment.libraries, **environment.others}
            facts["versions"] = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "equimod")
        return facts


def gather(folders: Sequence[Path], say: Callable[[str], None]) -> list[Run]:
    """The runs in these folders. `say` hears what damaged checkpoints were skipped.

    Raises ConfigError where a folder holds no run or a file of it is damaged, OSError where one cannot be read.
    """
    names = [folder.resolve().name for folder in folders]
    return [
        _gather(folder, name if names.count(name) == 1 else str(folder), say)
        for folder, name in zip(folders, names, strict=True)
    ]


def _gather(folder: Path, name: str, say: Callable[[str], None]) -> Run:
    config, metrics, found = read_run(folder), folder / "metrics.jsonl", read_scores(folder)
    events = read_events(metrics) if metrics.exists() else []
    unused = {name for name, used in (("equivariance", config.equimod), ("rotation", config.essl)) if not used}
    figures = [f"figures/{path.name}" for path in sorted(folder.glob("figures/*.png"))]
    return Run(
        folder,
        name,
        config,
        flat({name: value for name, value in yaml.safe_load(config.to_yaml()).items() if name not in unused}),
        [event for event in events if event["event"] == "step"],
        training_seconds(events, config.batch_size)[0],
        _time_spent(metrics, events),
        {name: float(value) for name, value in found.items() if isinstance(value, float)},
        found.get("evaluators", {}),
        found.get("checkpoint"),
        _checkpoint(folder, say),
        _begun(folder),
        [*(name for name in _FILES if (folder / name).exists()), *figures],
    )


def flat(settings: Any, name: str = "") -> dict[str, str]:
    """Nested settings by their paths, such as `augment.views.0.flip.p`."""
    if isinstance(settings, list) and any(isinstance(value, dict) for value in settings):
        settings = dict(enumerate(settings))
    if isinstance(settings, dict) and settings:
        return {k: v for key, value in settings.items() for k, v in flat(value, f"{name}.{key}".strip(".")).items()}
    is_list = isinstance(settings, list) and settings
    return {name: " ".join(map(str, settings)) if is_list else str(settings)}


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that differ, with the value of each run; where a run lies is none."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name != "output")
    values = {name: [run.settings.get(name, "–") for run in runs] for name in names}
    return {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}


def _time_spent(metrics: Path, events: Sequence[Mapping[str, Any]]) -> TimeSpent | None:
    told = [event for event in events if event["event"] == "time"]
    try:
        return msgspec.convert(told[-1], TimeSpent) if told else None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{metrics} is damaged: its last table of times has {error}; remove that line") from error


def _checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest that is sound. Where there is none, that is said, and there is the rest of the run to report."""
    try:
        return first_sound(folder / "checkpoints", Checkpoint.open, say)
    except CheckpointError as error:
        say(str(error))
        return None


def _begun(folder: Path) -> str | None:
    """When its first process began, from the name of what TensorBoard wrote: dates of files do not survive a copy."""
    names = [_BEGUN.match(path.name) for path in folder.glob("tensorboard/events*")]
    seconds = [int(match[1]) for match in names if match]
    return f"{datetime.fromtimestamp(min(seconds), UTC):%Y-%m-%d %H:%M} UTC" if seconds else None


def _code(environment: Environment) -> str:
    """The commit, where this installation has the code of the run, or else a digest of that code."""
    commit = provenance("", ())["commit"] if environment.code == code_digests() else None
    if commit:
        return f"commit {commit['sha'][:10]}{' with changes' if commit['dirty'] else ''}"
    version = environment.others.get("equimod", "of no known version")
    return f"equimod {version}, digest {digest_of(environment.code)}"
