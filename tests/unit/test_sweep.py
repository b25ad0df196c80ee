"""The tables of the paper as sweeps: what they run, how they go on after an interruption, what they print."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equimod.tools.sweep import TABLES, main
from equimod.train.config import ConfigError, check, parse
from equimod.train.summary import summary

SWEEP = Path(__file__).parents[2] / "tools" / "sweep.py"
SMALL = ["--epochs", "2", "--optim.warmup-epochs", "1", "--batch-size", "8", "--encoder.width", "8"]
SMALL += ["--simclr.hidden", "16", "--log.every", "1", "--log.checkpoint-every", "2", "--system.workers", "1"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "equimod: true\nepochs: 7\nbatch_size: 100\nseed: 3\nencoder: {arch: resnet18, width: 16}\n"
    )
    scores = {"linear_top1": 71.5, "equivariance_absolute": 1.5, "equivariance_relative": 0.5}
    (folder / "eval.json").write_text(json.dumps({**scores, "evaluators": {"linear": {"train_images": 5000}}}))
    events = [
        {"event": "step", "step": 10, "images_per_s": 500.0, "data_wait": 0.07},
        {"event": "checkpoint", "step": 15},
        {"event": "step", "step": 30, "images_per_s": 400.0, "data_wait": 0.14},
    ]
    cut = '{"event": "st'  # by a kill
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + cut)
    return folder


def test_a_summary_holds_settings_scores_and_duration_of_a_run(run_folder: Path) -> None:
    run = summary(run_folder)
    config = run.pop("config")
    assert run == {
        "method": "simclr",
        "equimod": True,
        "arch": "resnet18",
        "width": 16,
        "epochs": 7,
        "batch_size": 100,
        "images": 5000,
        "seed": 3,
        "linear_top1": 71.5,
        "linear_cached_top1": None,
        "knn_top1": None,
        "absolute": 1.5,
        "relative": 0.5,
        "eval": {"linear_top1": 71.5, "equivariance_absolute": 1.5, "equivariance_relative": 0.5},
        "seconds": 1000 / 500 + 2000 / 400,
        "data_wait": 0.12,  # (2 * 0.07 + 5 * 0.14) / 7
    }
    assert (config["epochs"], config["encoder"]["width"]) == (7, 16)
    assert not {"data", "val", "output"} & config.keys()


def test_a_run_that_was_not_evaluated_has_no_summary(run_folder: Path) -> None:
    (run_folder / "eval.json").unlink()
    with pytest.raises(ConfigError, match=r"no eval\.json; run python train/evaluate\.py"):
        summary(run_folder)


@pytest.mark.parametrize("size", ["cpu", "paper"])
@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_a_training_of_its_own_that_the_trainer_takes(
    table: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([table, "--size", size, "--data", "train", "--val", "val", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = set()
    for line in lines:
        training, _, evaluation = line.partition(" && ")
        config = parse(training.replace("''", "").split()[2:])
        check(config)
        settings.add(config.to_yaml().replace(f"output: {config.output}", ""))
        assert ("--equivariance" in evaluation) == config.equimod
        assert ("--linear-cached" in evaluation) == (size == "cpu") == (config.epochs == 8)
    assert len(lines) == len(settings) == len(TABLES[table].rows)


def test_the_papers_default_is_one_row_of_each_ablation() -> None:
    for name in ("table2a", "table2b", "table2c", "table3a", "table3b", "table3c"):
        assert [row.paper for row in TABLES[name].rows if "(default)" in row.title] == [92.79]


def _events(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k in ("step", "loss")} for line in lines]


def test_an_interrupted_sweep_goes_on_and_ends_like_one_that_was_left_alone(image_tree: Path, tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        data = ["--data", str(image_tree), "--val", str(image_tree), "--output", str(output)]
        return [sys.executable, str(SWEEP), "controls", "--size", "cpu", *data, "--", *SMALL]

    alone = subprocess.run(command(tmp_path / "alone"), capture_output=True, text=True, check=False)
    assert alone.returncode == 0, alone.stderr
    stopped = tmp_path / "stopped"
    with subprocess.Popen(command(stopped), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (stopped / "weight-0-seed0" / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143
    assert "go on where it stopped" in errors
    assert not (stopped / "paper-seed0").exists()
    again = subprocess.run(command(stopped), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    results = [json.loads((folder / "controls-cpu.json").read_text()) for folder in (tmp_path / "alone", stopped)]
    scores = [
        [(run["linear_cached_top1"], run["knn_top1"], run["absolute"]) for row in result["rows"] for run in row["runs"]]
        for result in results
    ]
    assert len(scores[0]) == 4
    assert scores[0] == scores[1]
    assert _events(stopped / "weight-0-seed0")[0]["step"] == 1
    table = again.stdout.splitlines()[-5:]
    assert "linear top-1, %" in table[0]
    assert "92.79" in table[3]


def test_a_training_that_fails_stops_the_sweep_with_its_command(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path / "none"), "--val", str(image_tree), "--output", str(tmp_path / "runs")]
    assert main(["table3a", "--size", "cpu", *data, "--", *SMALL]) == 1
    assert "the command ended with" in capsys.readouterr().err
    assert main(["table3a", "--size", "cpu", *data, "--seeds", "0"]) == 2
