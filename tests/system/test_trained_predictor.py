"""After a training, EquiMod's predictor moves views the right way."""

from __future__ import annotations

from pathlib import Path

import pytest

from equimod.pipelines.shapes import draw_dataset
from equimod.train.config import RECIPES, read_recipe
from equimod.train.evaluation import equivariance, equivariance_per_operator
from equimod.train.evaluation.trained_run import open_trained_run
from equimod.train.main import main as train


@pytest.mark.ci
def test_after_a_training_the_predictor_moves_views_and_the_identity_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_dataset(tmp_path / "train", samples=2000, seed=0)
    draw_dataset(tmp_path / "val", samples=300, seed=0, split="test")
    options = ["--config", str(RECIPES / "simclr_equimod_shapes.yaml"), "--output", str(tmp_path / "run")]
    options += ["--data", str(tmp_path / "train"), "--val", str(tmp_path / "val"), "--system.device", "cpu"]
    options += ["--epochs", "8", "--batch-size", "100", "--optim.lr", "1", "--encoder.width", "16"]
    options += ["--simclr.hidden", "128", "--equivariance.projector", "128", "64", "--precision", "fp32"]
    assert train(options) == 0
    config = read_recipe(tmp_path / "run" / "config.yaml")
    trained = open_trained_run(tmp_path / "run", config, None, seed=0, workers=None)

    def measured() -> dict[str, float]:
        found = dict(equivariance.run(trained))
        return found | dict(equivariance_per_operator.run(trained))

    found = measured()
    for name in ("", "_jitter", "_gray"):
        assert found[f"equivariance_absolute{name}"] > found[f"equivariance_absolute{name}_ci95"]
        assert found[f"equivariance_relative{name}"] > 1
    monkeypatch.setattr(trained.equimod, "predict", lambda y_x, t: y_x)
    for name, value in measured().items():
        expected = 0 if "ci95" in name or "absolute" in name else 1
        assert value == pytest.approx(expected, abs=1e-9), name
