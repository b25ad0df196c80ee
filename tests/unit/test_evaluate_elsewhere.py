"""Encoders that are no run are evaluated as well: exported folders and models of timm."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import call
from needs import needs
from timm_cache import cached_weights

from equimod.tools.export import main as export
from equimod.train.evaluate import main as evaluate
from equimod.train.main import main as train

SCORES = ("--knn", "--linear-cached", "--rank", "--readout")


@pytest.fixture(scope="module")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    assert train([*options, "--equimod", "--epochs", "2", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    folder = run.parent / "export"
    assert export([str(run), "--to", "torchvision", "--output", str(folder)]) == 0
    return folder


def _scores(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "eval.json").read_text())
    return {name: value for name, value in found.items() if isinstance(value, float)}


def test_an_export_scores_as_its_run_does(run: Path, exported: Path, image_tree: Path) -> None:
    images = ["--train", image_tree, "--val", image_tree, "--workers", "1"]
    assert call(evaluate, run, *SCORES, *images).code == 0
    answer = call(evaluate, exported, *SCORES, *images)
    assert answer.code == 0, answer.err
    assert {"knn_top1", "linear_cached_top1", "rankme", "readout_r2_crop"} <= _scores(exported).keys()
    assert _scores(exported) == _scores(run)


def test_without_a_choice_an_export_has_the_quick_evaluators_and_no_figures(
    exported: Path, image_tree: Path, tmp_path: Path
) -> None:
    answer = call(evaluate, exported, "--train", image_tree, "--val", image_tree, "--output", tmp_path / "scores")
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "scores" / "eval.json").read_text())
    assert found["evaluators"].keys() == {"knn", "linear_cached"}
    assert found["encoder"] == str(exported)
    assert not (tmp_path / "scores" / "figures").exists()


def test_scores_of_a_run_go_where_they_are_told(run: Path, image_tree: Path, tmp_path: Path) -> None:
    images = ["--train", image_tree, "--val", image_tree]
    answer = call(evaluate, run, "--knn", "--figures", *images, "--output", tmp_path / "other")
    assert answer.code == 0, answer.err
    assert "knn_top1" in _scores(tmp_path / "other")
    assert (tmp_path / "other" / "figures" / "loss.png").is_file()


def test_a_model_of_timm_is_evaluated_with_weights_from_its_cache(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("timm")
    import timm

    cached_weights("test_vit.r160_in1k", timm.create_model("test_vit").state_dict(), tmp_path, monkeypatch)
    words = ["timm:test_vit.r160_in1k", "--knn", "--rank", "--readout", "--train", image_tree, "--val", image_tree]
    answer = call(evaluate, *words)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "timm:test_vit.r160_in1k has no folder for its scores; give --output FOLDER" in answer.err
    answer = call(evaluate, *words, "--output", tmp_path / "scores")
    assert answer.code == 0, answer.err
    assert {"knn_top1", "rankme", "readout_r2_blur"} <= _scores(tmp_path / "scores").keys()


def test_what_one_image_has_no_number_of_is_left_out_and_said(run: Path, image_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "class_0").mkdir(parents=True)
    shutil.copy(image_tree / "class_0" / "000.jpg", tmp_path / "one" / "class_0")
    images = ["--train", image_tree, "--val", tmp_path / "one", "--output", tmp_path / "scores"]
    for evaluators in (["--rank", "--equivariance"], ["--knn"]):
        answer = call(evaluate, run, *evaluators, *images)
        assert answer.code == 0, answer.err
    found = _scores(tmp_path / "scores")
    assert {"rankme", "equivariance_absolute", "knn_top1"} <= found.keys()
    assert not {"lidar", "equivariance_absolute_ci95"} & found.keys()


def test_a_file_is_no_folder_for_scores(run: Path, image_tree: Path) -> None:
    answer = call(evaluate, run, "--knn", "--output", run / "config.yaml")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "config.yaml is no folder; give one, that need not be there yet" in answer.err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--equivariance"], "--equivariance needs EquiMod, and .* is an encoder alone; leave it out"),
        (["--figures"], "--figures shows a training, and .* is an encoder alone; leave it out"),
        ([], "names no train images; give --train RECORDS"),
    ],
)
def test_what_an_encoder_alone_does_not_have_is_one_line(words: list[str], fault: str, exported: Path) -> None:
    data = ["--train", exported, "--val", exported] if words else []
    answer = call(evaluate, exported, *words, *data)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert re.search(fault, answer.err)


def test_a_folder_that_is_neither_is_one_line(tmp_path: Path) -> None:
    answer = call(evaluate, tmp_path, "--knn")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert f"{tmp_path} holds no run" in answer.err
