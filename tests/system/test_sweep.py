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
from equimod.train.config import parse

SWEEP = Path(__file__).parents[2] / "tools" / "sweep.py"

LAYER3 = "simclr-equimod-layer-layer3-seed0"
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
        while not (output / LAYER3 / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143
    assert "go on where it stopped" in errors
    assert not (output / "simclr-equimod-layer-layer2-seed0").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    # The run that was interrupted, left alone: by the command that the sweep names.
    listed = subprocess.run([*command[:5], *data, "--list", "--", *SMALL], capture_output=True, text=True, check=True)
    words = next(shlex.split(line) for line in listed.stdout.splitlines() if LAYER3 in line and "--seed" in line)
    alone = [word.replace(str(output), str(tmp_path / "alone")) for word in words]
    subprocess.run(alone[: alone.index("&&")], check=True, capture_output=True)
    interrupted = output / LAYER3
    assert same_end(interrupted, tmp_path / "alone" / LAYER3)
    assert _events(interrupted)[0]["step"] == 1
    result = json.loads((output / "layers-cpu.json").read_text())
    assert [len(row["runs"]) for row in result["rows"]] == [1, 1, 1]
    assert result["benchmark"] == "layers-cpu-24"  # of a part of the images
    *table, figure = again.stdout.splitlines()[-5:]
    assert "linear top-1, %" in table[0]
    assert "92.79" in table[1]
    assert figure == f"figure: {output / 'layers-cpu.png'}"
    assert (output / "layers-cpu.png").stat().st_size > 10_000


def test_a_training_that_fails_stops_the_sweep_with_its_command(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path / "none"), "--val", str(image_tree), "--output", str(tmp_path / "runs")]
    assert main(["table3a", "--size", "cpu", *data, "--", *SMALL]) == 1
    assert "the command ended with" in capsys.readouterr().err
    assert main(["table3a", "--size", "cpu", *data, "--seeds", "0"]) == 2


def test_a_finished_run_of_other_settings_or_data_is_not_taken_for_a_row(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = tmp_path / "runs", ["--data", str(image_tree), "--val", str(image_tree)]
    command = ["resolution", "--size", "cpu", *data, "--output", str(output)]
    run = output / "simclr-equimod-start-16-seed0"
    run.mkdir(parents=True)
    (run / "encoder.safetensors").touch()
    assert main([*command, "--list"]) == 0
    words = shlex.split(capsys.readouterr().out.partition(" && ")[0])
    config = parse([*words[3:], "--epochs", "7"])
    (run / "config.yaml").write_text(config.to_yaml())
    assert main(command) == 1
    assert f"{run} holds a run with epochs=8 (was 7); give another --output" in capsys.readouterr().err
    (run / "config.yaml").write_text(parse([*words[3:], "--data", str(tmp_path / "others")]).to_yaml())
    assert main(command) == 1
    assert f"holds a run with data={image_tree} (was {tmp_path / 'others'})" in capsys.readouterr().err
