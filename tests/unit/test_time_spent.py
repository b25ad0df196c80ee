"""train/time_spent.py: a run says where its time went and what its limit was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from equimod.pipelines.timing import LOADER, PREFETCH, TRAINING
from equimod.train.main import main
from equimod.train.report import read_events
from equimod.train.time_spent import data_wait, limit, time_spent

TESTS = Path(__file__).parents[1]
STEPS, BATCH = 12, 8  # 24 images make 3 steps an epoch
SETTINGS = {
    "epochs": 4,
    "batch-size": BATCH,
    "encoder.arch": "resnet10",
    "encoder.width": 8,
    "simclr.hidden": 16,
    "simclr.dim": 8,
    "optim.warmup-epochs": 1,
    "log.every": 4,
    "log.checkpoint-every": 6,
    "system.workers": 2,
    "system.device": "cpu",
}
GPU_STAGES = frozenset({"transfer", "operators", "forward", "backward", "optimizer"})


def _options(tree: Path, run: Path) -> list[str]:
    settings = {"method": "simclr", "data": tree, "output": run, **SETTINGS}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run / "metrics.jsonl") if event["event"] == kind]


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_run_tells_the_time_of_every_stage_and_they_add_up_to_its_own(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], chunks: int
) -> None:
    began, run = time.perf_counter(), tmp_path / "run"
    assert main([*_options(image_tree, run), "--grad-cache", str(chunks)]) == 0
    elapsed = time.perf_counter() - began
    [event] = _events(run, "time")
    stages, wall = event["stages"], event["wall_seconds"]
    assert set(stages) == {*LOADER, *PREFETCH, *TRAINING, "other"}
    assert all(stage["seconds"] > 0 for stage in stages.values())
    assert (event["step"], event["images"]) == (STEPS, STEPS * BATCH)
    training = sum(stages[name]["seconds"] for name in TRAINING)
    assert 0.4 * wall < training <= wall < elapsed  # the rest is the start of threads, on a busy machine
    assert training + stages["other"]["seconds"] == pytest.approx(wall, abs=1e-4)
    assert sum(stages[name]["seconds"] for name in PREFETCH) <= wall
    assert {(stage["thread"], stage["threads"]) for stage in stages.values()} == {
        ("loader", 2),
        ("prefetch", 1),
        ("training", 1),
    }
    assert event["data_wait"] == pytest.approx(stages["wait"]["seconds"] / wall, abs=1e-4)
    *_, title, header, table, sentence, done = _parts(capsys.readouterr().out, len(stages))
    assert title.startswith("Where ")
    assert [line.split()[0] for line in table] == list(stages)
    assert sentence == event["limit"]
    assert done.startswith("done: ")
    assert header.split()[0] == "stage"


def _parts(out: str, rows: int) -> tuple[Any, ...]:
    *before, done = out.splitlines()
    *before, sentence = before
    return (*before[:-rows], before[-rows:], sentence, done)


def test_every_step_logged_tells_the_seconds_since_the_one_before(image_tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(_options(image_tree, run)) == 0
    steps, [total] = _events(run, "step"), _events(run, "time")
    assert len(steps) == 3
    for event in steps:
        elapsed = SETTINGS["log.every"] * BATCH / event["images_per_s"]
        assert event["thread_seconds"].keys() == set(LOADER)
        assert event["seconds"].keys() >= {*PREFETCH, "wait", "forward", "backward", "optimizer"}
        training = sum(value for name, value in event["seconds"].items() if name in TRAINING)
        assert 0 < training < 1.02 * elapsed
        assert event["data_wait"] == pytest.approx(event["seconds"]["wait"] / elapsed, rel=0.05, abs=0.01)
    for name in ("wait", "forward", "backward", "optimizer"):
        logged = sum(event["seconds"][name] for event in steps)
        assert logged == pytest.approx(total["stages"][name]["seconds"], rel=0.01, abs=1e-3)


def test_shares_are_of_the_time_that_the_threads_of_a_stage_had() -> None:
    spent = time_spent({"read": 1.0, "decode": 15.0, "wait": 4.0}, 10.0, 500, loader_threads=2)
    assert (spent.stages["decode"].share, spent.stages["decode"].ms_an_image) == (0.75, 30.0)
    assert (spent.stages["wait"].share, spent.stages["wait"].ms_an_image) == (0.4, 8.0)
    assert spent.stages["other"].seconds == 6.0
    assert spent.data_wait == 0.4
    assert json.loads(json.dumps(spent.event(7)))["stages"]["read"]["threads"] == 2


STEP = {"forward": 40.0, "backward": 50.0, "optimizer": 5.0}
LOADS = {"read_ahead": 1.0, "draw": 1.0, "load": 60.0, "transfer": 1.0, "operators": 20.0}
DECODES = {"read": 30.0, "decode": 80.0, "resize": 50.0}
READS = {"read": 90.0, "decode": 40.0, "resize": 20.0}


@pytest.mark.parametrize(
    ("seconds", "sentence"),
    [
        ({"wait": 4.9, **STEP, **LOADS, **READS}, "the step is the limit (forward 40%, backward 50%, optimizer 5%)"),
        ({"wait": 12.0, **LOADS, **DECODES}, "the loader's threads are the limit; give more cores or smaller records"),
        ({"wait": 12.0, **LOADS, **READS}, "the disk is the limit: reading is 60% of the loader threads' work"),
        ({"wait": 12.0, **LOADS, **READS, "load": 10.0}, "the prefetch thread is the limit"),
        ({"wait": 12.0, **LOADS, **DECODES, "read_ahead": 61.0}, "the disk is the limit: reading is 19% of the loader"),
        ({"wait": 12.0, **LOADS, "read_ahead": 61.0}, "the disk is the limit"),
        ({"wait": 12.0, **LOADS}, "the loader is the limit, and this backend does not tell its reading"),
    ],
)
def test_the_sentence_names_the_limit(seconds: dict[str, float], sentence: str) -> None:
    said = limit(seconds, 100.0)
    assert said.startswith(f"training waits for data {seconds['wait'] / 100:.0%} of the time: {sentence}")
    assert "\n" not in said


@pytest.mark.parametrize(("read", "disk"), [(49.0, False), (51.0, True)])
def test_the_disk_is_the_limit_where_the_loader_reads_more_than_half_of_its_time(read: float, disk: bool) -> None:
    said = limit({"wait": 12.0, **LOADS, "read": read, "decode": 60.0 - read, "resize": 40.0}, 100.0)
    assert ("the disk is the limit" in said) is disk


def test_a_host_that_runs_ahead_of_a_busy_gpu_does_not_wait_for_data() -> None:
    seconds = {"wait": 60.0, **STEP, **LOADS, **DECODES}
    assert data_wait(seconds, 100.0) == 0.6
    assert data_wait(seconds, 100.0, GPU_STAGES) == pytest.approx(0.05)
    assert "the step is the limit" in limit(seconds | {"backward": 52.0}, 100.0, GPU_STAGES)


def test_operators_on_a_gpu_are_no_work_of_the_prefetch_thread() -> None:
    seconds = {"wait": 60.0, "forward": 20.0, **LOADS, **DECODES, "operators": 70.0}
    assert "the prefetch thread is the limit" in limit(seconds, 100.0)
    assert "the loader's threads are the limit" in limit(seconds, 100.0, GPU_STAGES)


def test_what_a_training_thread_does_beside_its_stages_is_not_told_where_a_gpu_works_for_it() -> None:
    assert "other" not in time_spent({"wait": 1.0, **STEP}, 100.0, 8, loader_threads=1, on_gpu=GPU_STAGES).stages
