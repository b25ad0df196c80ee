"""The evaluators by name, the run they are given, and eval.json, which keeps what they find."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from equimod.models.ssl import SSL
from equimod.pipelines.durable import durable_file
from equimod.pipelines.policy import EVALUATION_POLICIES, POLICIES
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import Records
from equimod.train import checkpoint
from equimod.train.config import Config, ConfigError
from equimod.train.data import check_classes
from equimod.train.evaluation import equivariance, figures, knn, linear_probe, readout, retrieval
from equimod.train.evaluation.features import Features, FrozenEncoder, extract
from equimod.train.loop import AUTOCAST
from equimod.train.run import build_model


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, with the data it is evaluated on.

    Features are computed once, for the first evaluator that needs them: its duration in eval.json includes theirs.
    """

    folder: Path
    config: Config  # data, val: what to evaluate on
    identity: dict[str, Any]  # of the checkpoint, for eval.json
    model: SSL
    train: Records
    val: Records
    seed: int
    workers: int | None

    @cached_property
    def encoder(self) -> FrozenEncoder:
        return FrozenEncoder(self.model.encoder, AUTOCAST[self.config.precision])

    @cached_property
    def train_features(self) -> Features:
        return self._features(self.train)

    @cached_property
    def val_features(self) -> Features:
        return self._features(self.val)

    def _features(self, records: Records) -> Features:
        x = EVALUATION_POLICIES[self.config.dataset].x
        return extract(self.encoder, records, x, self.train.classes, workers=self.workers)


Values = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Evaluator:
    run: Callable[[TrainedRun], Values]
    settings: dict[str, Any] = field(default_factory=dict)  # for eval.json


def _linear(run: TrainedRun) -> Values:
    policy = EVALUATION_POLICIES[run.config.dataset]
    return linear_probe.run(run.encoder, run.train, run.val_features, policy, seed=run.seed, workers=run.workers)


def _linear_cached(run: TrainedRun) -> Values:
    return linear_probe.run_cached(run.train_features, run.val_features, seed=run.seed)


def _knn(run: TrainedRun) -> Values:
    return knn.run(run.train_features, run.val_features)


def _of_predictor(measure: Callable[..., Values]) -> Callable[[TrainedRun], Values]:
    """An evaluator of EquiMod's predictor on views of the validation images."""

    def on_run(run: TrainedRun) -> Values:
        if run.model.equimod is None:
            raise ValueError("this is measured with EquiMod's predictor, and this model has none")
        policy = POLICIES[run.config.policy]
        return measure(run.encoder, run.model.equimod, run.val, policy, seed=run.seed, workers=run.workers)

    return on_run


def _readout(run: TrainedRun) -> Values:
    return readout.run(run.encoder, run.train, run.val, POLICIES[run.config.policy], seed=run.seed, workers=run.workers)


EVALUATORS = {
    "linear": Evaluator(_linear, asdict(linear_probe.ProbeSettings())),
    "linear_cached": Evaluator(_linear_cached, asdict(linear_probe.ProbeSettings())),
    "knn": Evaluator(_knn, asdict(knn.KnnSettings())),
    "equivariance": Evaluator(_of_predictor(equivariance.run)),
    "equivariance_per_operator": Evaluator(_of_predictor(equivariance.run_per_operator)),
    "retrieval": Evaluator(_of_predictor(retrieval.run), {"views": retrieval.VIEWS}),
    "readout": Evaluator(_readout, {"ridge": readout.RIDGE}),
}


def open_trained_run(folder: Path, config: Config, path: Path | None, *, seed: int, workers: int | None) -> TrainedRun:
    """Load a checkpoint of the run in `folder`, the newest where `path` is None, on the GPU where there is one and
    the run was not told to leave it alone.

    `config`: of the run, with data and val set to what to evaluate on. Raises CheckpointError where there is no
    checkpoint or it does not fit, RecordsError for bad records, ConfigError where classes of val are unknown.
    """
    path = path or checkpoint.newest(folder / "checkpoints")
    if path is None:
        raise checkpoint.CheckpointError(f"{folder} holds no checkpoint; train until the first one is written")
    assert config.data is not None
    assert config.val is not None
    train, val = open_records(config.data), open_records(config.val)
    check_classes(train, val, config.val)
    identity = _identity(path)
    model = build_model(config, train)
    checkpoint.load_model(path, model)
    model.to("cuda" if torch.cuda.is_available() and config.system.device != "cpu" else "cpu")
    torch.backends.cudnn.deterministic = True  # so that features are the same bits each time
    return TrainedRun(folder, config, identity, model, train, val, seed, workers)


def evaluate(trained: TrainedRun, names: Sequence[str]) -> None:
    """Run evaluators and print and keep in eval.json what they find, each as soon as it is done.

    Raises ConfigError where eval.json is damaged.
    """
    _read_results(trained.folder / "eval.json")  # rather before the work than after it
    for name in names:
        began = time.perf_counter()
        values = dict(EVALUATORS[name].run(trained))
        used = {
            **EVALUATORS[name].settings,
            "seed": trained.seed,
            "train": str(trained.config.data),
            "train_images": len(trained.train),
            "val": str(trained.config.val),
            "val_images": len(trained.val),
            "seconds": round(time.perf_counter() - began, 2),
        }
        _keep(trained, name, values, used)
        for key, value in values.items():
            print(f"{key:<40}{value:>10.3f}{' %' if '_top' in key else ''}", flush=True)


def draw_figures(trained: TrainedRun) -> None:
    """Draw loss.png, views.png and, once it is measured, equivariance.png into the run's figures/."""
    config, folder = trained.config, trained.folder / "figures"
    figures.draw_losses(trained.folder / "metrics.jsonl", folder / "loss.png", f"{config.title} on {config.dataset}")
    figures.draw_views(
        trained.train, POLICIES[config.policy], folder / "views.png", seed=config.seed, window=config.shuffle_window
    )
    drawn = [folder / "loss.png", folder / "views.png"]
    found = _read_results(trained.folder / "eval.json")
    if found.get("weights") == trained.identity["weights"] and "equivariance_per_operator" in found["evaluators"]:
        drawn.append(folder / "equivariance.png")
        figures.draw_equivariance(found, drawn[-1], f"{config.title} on {config.dataset}")
    print(f"figures: {', '.join(map(str, drawn))}", flush=True)


def _keep(trained: TrainedRun, name: str, values: dict[str, float], used: dict[str, Any]) -> None:
    """Merge results into eval.json; results of another checkpoint are dropped from it."""
    path = trained.folder / "eval.json"
    found = _read_results(path)
    if found.get("weights") != trained.identity["weights"]:
        found = {}
    evaluators = {**found.pop("evaluators", {}), name: used}
    with durable_file(path) as out:
        out.write(json.dumps({**found, **trained.identity, **values, "evaluators": evaluators}, indent=2).encode())


def _read_results(path: Path) -> dict[str, Any]:
    """The content of eval.json so far. Raises ConfigError where it is damaged."""
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); remove it and evaluate again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no results of an evaluation; remove it and evaluate again")
    return found


def _identity(path: Path) -> dict[str, Any]:
    cursor = checkpoint.read_state(path)["cursor"]
    with (path / "model.safetensors").open("rb") as handle:
        weights = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"checkpoint": path.name, "weights": weights, "epoch": cursor["epoch"], "step_in_epoch": cursor["step"]}
