"""Validation beside a training: it says what evaluation says, and leaves no trace in what is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from PIL import Image
from small_runs import same_end

from equimod.pipelines.records import open_records
from equimod.train import validation
from equimod.train.config import read_run
from equimod.train.evaluate import main as evaluate
from equimod.train.main import main as train
from equimod.train.validation import Validation

EVERY = ["--log.validate-every", "5"]


def _events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "validation"]


@pytest.fixture(scope="module")
def runs(options: list[str], image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 12 steps with validations, and one without."""
    folder = tmp_path_factory.mktemp("validation")
    for name, more in (("with", EVERY), ("without", [])):
        words = [*options, "--val", str(image_tree), *more, "--output", str(folder / name)]
        assert train(words) == 0
    return folder / "with", folder / "without"


def test_the_training_is_the_same_to_the_bit(runs: tuple[Path, Path]) -> None:
    assert same_end(*runs)
    assert [event["step"] for event in _events(runs[0])] == [5, 10, 12]
    assert _events(runs[1]) == []


def test_the_scores_are_those_of_evaluation(runs: tuple[Path, Path], image_tree: Path) -> None:
    images = ["--train", image_tree, "--val", image_tree]
    assert call(evaluate, runs[0], "--knn", "--linear-cached", *images).code == 0
    scores = json.loads((runs[0] / "eval.json").read_text())
    last = _events(runs[0])[-1]
    names = {"knn_top1", "knn_top5", "linear_cached_top1", "linear_cached_top5"}
    assert {name: last[name] for name in names} == {name: scores[name] for name in names}
    assert last.keys() == names | {"event", "step"}


def test_training_images_are_some_of_many(
    runs: tuple[Path, Path], image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "TRAINING_IMAGES", 6)
    config, records = read_run(runs[0]), open_records(image_tree)
    made = Validation.of(config, records)
    assert made is not None
    assert np.array_equal(made.train.index, [0, 4, 8, 12, 16, 20])
    assert len(made.val) == 24
    assert Validation.of(read_run(runs[1]), records) is None


def test_a_run_that_goes_on_keeps_the_validations_up_to_its_checkpoint(
    runs: tuple[Path, Path], options: list[str], image_tree: Path, tmp_path: Path
) -> None:
    start = ["--resume", str(runs[0] / "checkpoints" / "step-00000010")]
    words = [*options, "--val", str(image_tree), *EVERY, *start, "--output", str(tmp_path / "resumed")]
    assert train(words) == 0
    assert same_end(tmp_path / "resumed", runs[0])
    assert _events(tmp_path / "resumed") == _events(runs[0])[2:]


def test_without_validation_images_or_labels_it_is_one_line(
    options: list[str], image_tree: Path, tmp_path: Path
) -> None:
    words = [*options, *EVERY, "--output", tmp_path / "run"]
    answer = call(train, *words)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "log.validate_every classifies validation images, and no val images are given; leave it out" in answer.err
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "flat" / "a.png")
    flat = call(train, *words, "--val", tmp_path / "flat")
    assert (flat.code, flat.err.count("\n")) == (2, 1)
    assert "flat has no labels; leave it out, or give --val with labels" in flat.err
    unlabelled = call(train, *words, "--labels", "none", "--val", image_tree)
    assert (unlabelled.code, unlabelled.err.count("\n")) == (2, 1)
    assert "has no labels; leave it out, or give --val and --data with labels" in unlabelled.err
    assert not (tmp_path / "run").exists()
