"""Sweeps start trainings: one that was interrupted goes on, one that fails says with which command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equimod.tools.sweep import main

SWEEP = Path(__file__).parents[2] / "tools" / "sweep.py"


SMALL = ["--epochs", "2", "--optim.warmup-epochs", "1", "--batch-size", "8", "--encoder.width", "8"]
SMALL += ["--simclr.hidden", "16", "--log.every", "1", "--log.checkpoint-every", "2", "--system.workers", "1"]


def _events(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k in ("step", "loss")} for line in lines]


@pytest.mark.ci
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
