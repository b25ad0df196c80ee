"""Sweeps start trainings: one that was interrupted goes on, one that fails says with which command."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import same_end

from equimod.tools.sweep import main

SWEEP = Path(__file__).parents[2] / "tools" / "sweep.py"


SMALL = ["--epochs", "2", "--optim.warmup-epochs", "1", "--batch-size", "8", "--encoder.width", "8"]
SMALL += ["--simclr.hidden", "16", "--log.every", "1", "--log.checkpoint-every", "2", "--system.workers", "1"]


def _events(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k in ("step", "loss")} for line in lines]


@pytest.mark.ci
def test_an_interrupted_sweep_goes_on_and_ends_like_one_that_was_left_alone(image_tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    data = ["--data", str(image_tree), "--val", str(image_tree), "--output", str(output)]
    command = [sys.executable, str(SWEEP), "layers", "--size", "cpu", *data, "--", *SMALL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (output / "layer3-seed0" / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143
    assert "go on where it stopped" in errors
    assert not (output / "layer2-seed0").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    # The run that was interrupted, left alone: by the command that the sweep names.
    listed = subprocess.run([*command[:5], *data, "--list", "--", *SMALL], capture_output=True, text=True, check=True)
    words = next(
        shlex.split(line) for line in listed.stdout.splitlines() if "layer3-seed0" in line and "--seed" in line
    )
    alone = [word.replace(str(output), str(tmp_path / "alone")) for word in words]
    subprocess.run(alone[: alone.index("&&")], check=True, capture_output=True)
    interrupted = output / "layer3-seed0"
    assert same_end(interrupted, tmp_path / "alone" / "layer3-seed0")
    assert _events(interrupted)[0]["step"] == 1
    result = json.loads((output / "layers-cpu.json").read_text())
    assert [len(row["runs"]) for row in result["rows"]] == [1, 1, 1]
    table = again.stdout.splitlines()[-4:]
    assert "linear top-1, %" in table[0]
    assert "92.79" in table[1]


def test_a_training_that_fails_stops_the_sweep_with_its_command(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path / "none"), "--val", str(image_tree), "--output", str(tmp_path / "runs")]
    assert main(["table3a", "--size", "cpu", *data, "--", *SMALL]) == 1
    assert "the command ended with" in capsys.readouterr().err
    assert main(["table3a", "--size", "cpu", *data, "--seeds", "0"]) == 2
