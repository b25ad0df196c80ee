"""The true W&B, offline, and MLflow, in a file, get a run's scalars and settings, and go on with it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_train import with_fault
from needs import needs
from small_runs import STEPS, losses

from equimod.train import loop
from equimod.train.main import main

LEVELDB_BLOCK, LEVELDB_HEADER, WANDB_HEADER = 32768, 7, 7  # bytes


@pytest.fixture
def train(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    return lambda *more: main([*options, "--output", str(tmp_path / "run"), *more])


def _in_two_parts(train: Callable[..., int], tracker: str) -> None:
    """Train until a SIGTERM after step 7, then to the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", with_fault(loop.train_step, 6, "SIGTERM"))
        assert train("--log.to", tracker) == 143
    assert train("--log.to", tracker, "--resume", "auto") == 0


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    needs("wandb")
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))  # where keys are looked for
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield wandb
    wandb.teardown()


def _wandb_records(file: Path) -> Iterator[Any]:
    """What lies in the file of a run that is offline: messages in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = file.read_bytes(), WANDB_HEADER, b""
    while at + LEVELDB_HEADER <= len(data):
        left = LEVELDB_BLOCK - at % LEVELDB_BLOCK
        if left < LEVELDB_HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += LEVELDB_HEADER + length
        message += data[at - length : at]
        if kind in (1, 4):  # whole, or a last part
            yield Record.FromString(message)
            message = b""


def test_wandb_gets_one_run_of_both_parts(
    train: Callable[..., int], tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    _in_two_parts(train, "wandb")
    wandb.teardown()  # the process that writes its files ends
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    records = [record for part in parts for record in _wandb_records(part)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {run.run_id for run in runs} == {(tmp_path / "run" / "wandb.id").read_text()}
    assert {run.project for run in runs} == {"equimod"}
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (settings["optim"]["lr"], settings["resume"]) == (0.5, "never")
    entries = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(entry["_step"], entry["loss"]) for entry in entries] == losses(tmp_path / "run")
    assert len(entries) == STEPS


def test_wandb_without_a_key_asks_nobody_and_says_what_to_do(
    train: Callable[..., int], wandb: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train("--log.to", "wandb") == 0
    out, err = capfd.readouterr()
    assert "warning: wandb gets no more of this run: it has no API key; run wandb login" in out
    assert "wandb" not in err


def test_mlflow_gets_one_run_of_both_parts(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    from mlflow import MlflowClient

    _in_two_parts(train, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("equimod")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (tmp_path / "run" / "mlflow.id").read_text()
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["optim.lr"] == "0.5"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == losses(tmp_path / "run")


def test_a_full_or_missing_disk_of_mlflow_is_one_line(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    needs("mlflow")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/runs.db")
    assert train("--log.to", "mlflow") == 0
    assert capfd.readouterr().out.count("warning: mlflow gets no more of this run: ") == 1
