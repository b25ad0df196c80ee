"""Evaluation from the command line, on a run of two epochs, and the features that evaluators share."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from needs import needs

from equimod.models.encoder import build_encoder
from equimod.models.settings import EncoderSettings
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import POLICIES, evaluation_policy
from equimod.pipelines.records import open_records
from equimod.train import evaluation
from equimod.train.config import SystemSettings, read_recipe
from equimod.train.evaluate import main
from equimod.train.evaluation import EVALUATORS, load, robustness, trained_run
from equimod.train.evaluation.features import FrozenEncoder, extract
from equimod.train.evaluation.trained_run import open_trained_run
from equimod.train.main import main as train

POLICY = evaluation_policy(POLICIES["simclr_cifar10"], "cifar10")
QUICK = ("linear_cached_top1", "linear_cached_top5", "knn_top1", "knn_top5", "equivariance_absolute")

TRAINING = """\
method: simclr
equimod: true
dataset: cifar10
policy: simclr_cifar10
epochs: 2
batch_size: 8
optim: {warmup_epochs: 1}
encoder: {arch: resnet10, width: 8}
simclr: {hidden: [16], dim: 8}
equivariance: {projector: [16, 8], embedding: [4]}
log: {every: 1, checkpoint_every: 4}
"""


@pytest.fixture(scope="module")
def trained(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, of step 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(TRAINING)
    tree = str(image_tree)
    assert train(["--config", f"{folder / 'recipe.yaml'}", "--data", tree, "--val", tree, "--output", f"{folder}"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run to evaluate."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def _evaluate(run: Path, *options: str) -> dict[str, Any]:
    assert main([str(run), *options]) == 0
    found: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return found


def _scores(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "evaluators"}


def test_without_a_choice_the_quick_evaluators_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _evaluate(run)
    assert set(found["evaluators"]) == {"linear_cached", "knn", "equivariance"}
    assert all(name in found for name in QUICK)
    assert found["linear_cached_top5"] == 100  # of three classes
    assert (found["checkpoint"], found["epoch"], found["step_in_epoch"]) == ("step-00000006", 2, 0)
    assert found["evaluators"]["knn"].items() >= {"k": 200, "seed": 0, "train_images": 24, "val_images": 24}.items()
    assert (run / "figures" / "loss.png").is_file()
    assert (run / "figures" / "views.png").is_file()
    assert "knn_top1" in capsys.readouterr().out


def test_the_same_evaluation_finds_the_same_bits(run: Path) -> None:
    first = _evaluate(run, "--linear-cached", "--knn", "--equivariance", "--workers", "1")
    (run / "eval.json").unlink()
    assert _scores(_evaluate(run, "--linear-cached", "--knn", "--equivariance", "--workers", "2")) == _scores(first)


def test_evaluators_of_the_same_checkpoint_are_kept_and_others_dropped(run: Path) -> None:
    before = _evaluate(run, "--knn")
    both = _evaluate(run, "--linear-cached")
    assert both["knn_top1"] == before["knn_top1"]
    assert set(both["evaluators"]) == {"knn", "linear_cached"}
    older = _evaluate(run, "--equivariance", "--checkpoint", str(run / "checkpoints" / "step-00000004"))
    assert set(older["evaluators"]) == {"equivariance"}
    assert "knn_top1" not in older
    assert (older["checkpoint"], older["epoch"], older["step_in_epoch"]) == ("step-00000004", 1, 1)


def test_the_paper_s_linear_evaluation_runs_when_asked_for(run: Path) -> None:
    found = _evaluate(run, "--linear")
    assert set(found["evaluators"]) == {"linear"}
    assert found["linear_top5"] == 100
    assert found["evaluators"]["linear"].items() >= {"epochs": 90, "batch_size": 256, "lr": 0.2}.items()


def test_what_takes_longer_runs_when_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _evaluate(run, "--equivariance-per-operator", "--retrieval", "--readout")
    assert set(found["evaluators"]) == {"equivariance_per_operator", "retrieval", "readout"}
    assert found["evaluators"]["retrieval"]["views"] == 16
    assert {"equivariance_relative_jitter", "retrieval_mrr", "readout_r2_crop"} <= found.keys()
    assert not (run / "figures").exists()
    _evaluate(run, "--figures")
    assert (run / "figures" / "equivariance.png").is_file()
    assert "equivariance.png" in capsys.readouterr().out
    shutil.rmtree(run / "figures")
    _evaluate(run, "--figures", "--checkpoint", str(run / "checkpoints" / "step-00000004"))
    assert not (run / "figures" / "equivariance.png").exists()  # measured on another checkpoint


def test_factors_beside_the_images_are_read_out_when_asked_for(
    run: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.symlink_to(image_tree)
    names = [path.relative_to(image_tree) for path in sorted(image_tree.glob("*/*.jpg"))]
    rows = "".join(f"{name},{number % 7},{number / 24}\n" for number, name in enumerate(names))
    (tmp_path / "images-factors.csv").write_text(f"file,place,hue\n{rows}")
    found = _evaluate(run, "--factors", "--train", str(folder), "--val", str(folder))
    assert set(found["evaluators"]) == {"factors"}
    assert {"factors_r2_place", "factors_r2_hue"} <= found.keys()
    (tmp_path / "images-factors.csv").unlink()
    (run / "eval.json").unlink()
    capsys.readouterr()
    assert main([str(run), "--factors", "--train", str(folder), "--val", str(folder)]) == 2
    assert f"{folder} has no factors" in _one_line(capsys.readouterr().err)
    assert not (run / "eval.json").exists()


def test_all_cores_make_what_one_makes() -> None:
    needs("robustness")
    pixels, index = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8), np.array([4, 9])
    tasks: list[robustness.Corruption] = [("fog", 1), ("fog", 2), ("impulse_noise", 5)] * 3
    found = list(robustness.corrupted(pixels, index, tasks, seed=3))
    assert [task for task, _ in found] == tasks
    for (name, strength), images in found:
        for image, original, number in zip(images, pixels, index, strict=True):
            assert np.array_equal(image, robustness.corrupt(original, name, strength, (3, int(number))))


def test_robustness_is_measured_when_asked_for(run: Path) -> None:
    needs("robustness")
    found = _evaluate(run, "--robustness", "--linear-cached")
    assert found["robustness_clean_top1"] == found["linear_cached_top1"]
    assert len([name for name in found if name.startswith("robustness_")]) == 15 + 3
    assert found["evaluators"]["robustness"].items() >= {"images": 1000, "epochs": 90}.items()


def test_tables_without_a_factor_in_common_are_refused(
    run: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, column in (("train", "place"), ("val", "hue")):
        (tmp_path / split).symlink_to(image_tree)
        rows = "".join(f"{path.relative_to(image_tree)},1\n" for path in image_tree.glob("*/*.jpg"))
        (tmp_path / f"{split}-factors.csv").write_text(f"file,{column}\n{rows}")
    assert main([str(run), "--factors", "--train", str(tmp_path / "train"), "--val", str(tmp_path / "val")]) == 2
    assert "(place)" in (line := _one_line(capsys.readouterr().err))
    assert "(hue) have no name in common" in line


def test_a_run_without_equimod_is_evaluated_without_equivariance(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = TRAINING.replace("equimod: true", "equimod: false").splitlines(keepends=True)
    (tmp_path / "recipe.yaml").write_text("".join(line for line in lines if not line.startswith("equivariance")))
    tree, run = str(image_tree), tmp_path / "run"
    assert train(["--config", f"{tmp_path / 'recipe.yaml'}", "--data", tree, "--val", tree, "--output", f"{run}"]) == 0
    assert set(_evaluate(run)["evaluators"]) == {"linear_cached", "knn"}
    for option in ("--equivariance", "--equivariance-per-operator", "--retrieval"):
        assert main([str(run), option]) == 2
        assert f"{option} needs EquiMod" in capsys.readouterr().err
    assert set(_evaluate(run, "--readout")["evaluators"]) == {"linear_cached", "knn", "readout"}


def _one_line(error: str) -> str:
    (line,) = error.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no run (no config.yaml); give the --output folder" in _one_line(capsys.readouterr().err)


def test_a_run_without_validation_images_asks_for_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "val": None}))
    assert main([str(run), "--knn"]) == 2
    assert "names no val images; give --val RECORDS" in _one_line(capsys.readouterr().err)


def test_unknown_classes_are_refused(
    run: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_tree / "class_0", tmp_path / "val" / "elsewhere")
    assert main([str(run), "--knn", "--val", str(tmp_path / "val")]) == 2
    assert "'elsewhere'" in _one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("broken", "options", "named"),
    [
        ("checkpoints", [], "holds no checkpoint"),
        (
            "checkpoints/step-00000006/state.json",
            ["--checkpoint", "{run}/checkpoints/step-00000006"],
            "state.json cannot",
        ),
        (None, ["--val", "missing"], "missing"),
    ],
)
def test_what_is_missing_is_named(
    run: Path, broken: str | None, options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if broken:
        (run / broken).rename(run / "elsewhere")
    assert main([str(run), "--knn", *(option.format(run=run) for option in options)]) == 1
    assert named in _one_line(capsys.readouterr().err)
    assert not (run / "eval.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_eval_json_is_to_be_removed(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "eval.json").write_text(content)
    assert main([str(run), "--knn"]) == 2
    assert "eval.json" in (line := _one_line(capsys.readouterr().err))
    assert "remove it" in line
    assert (run / "eval.json").read_text() == content


def test_ctrl_c_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("equimod.train.evaluation.results.evaluate", interrupt)
    assert main([str(run), "--knn"]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "interrupted; evaluate again; what was found before is in eval.json"


def test_the_checkpoint_before_a_damaged_one_is_evaluated_and_that_is_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (run / "checkpoints" / "step-00000006" / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\xff\xff")
    assert _evaluate(run, "--knn")["checkpoint"] == "step-00000004"
    said = capsys.readouterr().out
    assert said.startswith("skipped: ")
    assert "step-00000006/model.safetensors is damaged: it does not have its digest\n" in said


def test_settings_that_are_not_those_of_the_checkpoint_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one flipped bit could make them."""
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("temperature: 0.5", "temperature: 0.7"))
    assert main([str(run), "--knn"]) == 1
    error = capsys.readouterr().err
    assert "config.yaml is not that of step-00000006: simclr.temperature=0.7 (was 0.5); copy" in error


def test_a_checkpoint_that_the_training_removes_meanwhile_is_evaluated_all_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trained_run.open_images

    def remove(*arguments: Any) -> Any:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        return original(*arguments)

    monkeypatch.setattr(trained_run, "open_images", remove)
    assert _evaluate(run, "--knn")["checkpoint"] == "step-00000006"
    assert not (run / "checkpoints").exists()


def test_a_run_on_the_cpu_is_evaluated_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(read_recipe(run / "config.yaml"), system=SystemSettings(device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trained = open_trained_run(run, config, None, seed=0, workers=1)
    assert next(trained.trunk.parameters()).device.type == "cpu"


def test_every_evaluator_is_a_file_that_is_registered() -> None:
    files = [path for path in Path(evaluation.__path__[0]).glob("*.py") if "\ndef run(" in path.read_text()]
    assert {path.stem for path in files} == set(EVALUATORS)
    assert all(isinstance(load(name).SETTINGS, dict) for name in EVALUATORS)


def _encoder(autocast: torch.dtype | None = None) -> FrozenEncoder:
    torch.manual_seed(0)
    return FrozenEncoder(build_encoder(EncoderSettings(arch="resnet10", width=8)), autocast)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_features_are_those_of_x_in_the_order_of_the_records(image_tree: Path, autocast: torch.dtype | None) -> None:
    records, encoder = open_records(image_tree), _encoder(autocast)
    features = extract(encoder, records, POLICY.x, records.classes, workers=2)
    (batch,) = build_pipeline(records, POLICY, batch_size=24, seed=5, shuffle=False).epoch(3)
    assert batch.x is not None
    assert torch.equal(features.h, encoder(batch.x))
    assert features.h.dtype == torch.float32
    assert torch.equal(features.label, torch.from_numpy(records.label))


def test_labels_follow_the_class_names_of_the_training_set(image_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(image_tree / "class_2", tmp_path / "class_2")
    features = extract(_encoder(), open_records(tmp_path), POLICY.x, ["class_0", "class_1", "class_2"])
    assert features.label.tolist() == [2] * 8
