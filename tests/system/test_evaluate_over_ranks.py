"""Evaluation by several ranks: features and the linear evaluation are shared, and the scores are those of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import run_ranks

from equimod.train.evaluate import main
from equimod.train.evaluation import kept_training
from equimod.train.evaluation import stored_features as stored
from equimod.train.main import main as train

EVALUATORS = ["--linear", "--knn", "--equivariance"]
PROGRAM = """\
import os, signal, sys
from equimod.train.embedding import blocks
from equimod.train.evaluation import kept_training
blocks.BATCH_SIZE, blocks.BATCHES = 2, 2
save = kept_training.KeptTraining._save
def killed(self, epochs):
    save(self, epochs)
    if os.environ.get("KILLED") == f"{os.environ['RANK']} {epochs}":
        os.kill(os.getpid(), signal.SIGKILL)
kept_training.KeptTraining._save = killed
from equimod.train.evaluate import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def run(options: list[str], image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    assert train([*options, "--val", str(image_tree), "--epochs", "2", "--output", str(folder)]) == 0
    return folder


def _by_ranks(run: Path, output: Path) -> list[tuple[int, str]]:
    return run_ranks([["-c", PROGRAM, str(run), "--output", str(output), "--workers", "1", *EVALUATORS]] * 2)


def test_batches_that_ranks_cannot_share_are_one_line(run: Path, tmp_path: Path) -> None:
    command = ["-c", PROGRAM, str(run), "--output", str(tmp_path), "--workers", "1", "--linear"]
    ended = run_ranks([command] * 5)
    assert [code for code, _ in ended] == [2] * 5
    assert any("--linear has batches of 24 images, which 5 ranks cannot share evenly; start 4" in e for _, e in ended)


def _scores(output: Path) -> dict[str, float]:
    found = json.loads((output / "eval.json").read_text())
    return {name: value for name, value in found.items() if isinstance(value, float)}


@pytest.mark.ci
def test_ranks_find_what_one_finds(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([str(run), "--output", str(tmp_path / "one"), "--workers", "1", *EVALUATORS]) == 0
    monkeypatch.setenv("KILLED", "0 40")
    ended = _by_ranks(run, tmp_path / "two")
    assert [code == 0 for code, _ in ended] == [False, False], ended
    assert (tmp_path / "two" / kept_training.FOLDER / "linear.safetensors").is_file()
    assert len(list((tmp_path / "two" / stored.FOLDER).rglob("block-*"))) == 6
    monkeypatch.setenv("KILLED", "1 20")  # which is done
    assert _by_ranks(run, tmp_path / "two") == [(0, ""), (0, "")]
    assert not (tmp_path / "two" / kept_training.FOLDER).exists()
    one, two = _scores(tmp_path / "one"), _scores(tmp_path / "two")
    assert one.keys() == two.keys()
    # Sums in another order move the classifier's weights by less than a hundredth: one image of 24 may change sides.
    assert two.pop("linear_top1") == pytest.approx(one.pop("linear_top1"), abs=100 / 24 + 1e-6)
    assert two == pytest.approx(one, rel=1e-5)
