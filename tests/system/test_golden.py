"""Golden loss curves: 20 steps of every method, with and without EquiMod, in float64, as they were when stored.

A change that is meant to move numbers stores them anew: `EQUIMOD_STORE_GOLDEN=1 pytest tests/system/test_golden.py`,
and says so in its commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from equimod.models.settings import METHOD_NAMES
from equimod.pipelines.batch import Batch, Decoded
from equimod.pipelines.ops import apply, apply_center
from equimod.pipelines.policy import AugmentationPolicy
from equimod.pipelines.records import open_records
from equimod.pipelines.shapes import draw_dataset
from equimod.train.config import RECIPES, parse
from equimod.train.distributed import DistInfo
from equimod.train.loop import train_step
from equimod.train.run import build_train_state, training_pipeline

CURVES = Path(__file__).parents[1] / "golden" / "curves.json"
TOLERANCE = 1e-4
RUNS = [f"{method}{beside}" for method in METHOD_NAMES for beside in ("", " --equimod")]
RUNS = [run for run in RUNS if run != "none"] + [
    "simclr --equimod --essl",
    "simclr --equimod --equivariance.layer layer3",
]
SETTINGS = """\
extends: {recipe}
epochs: 5
batch_size: 32
precision: fp32
image_size: 32
encoder: {{width: 8}}
optim: {{lr: 0.05, warmup_epochs: 1}}
backend: native
system: {{device: cpu, workers: 1}}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "images"
    draw_dataset(folder, samples=128, seed=0, split="train", workers=1)
    return folder


def _double(decoded: Decoded, policy: AugmentationPolicy) -> Batch:
    """The operators' work in float64 too: what processors differ in is then too small to grow into a difference."""
    views = decoded.views
    images = [] if decoded.x is None else [apply_center(decoded.x.double() / 255, policy.x)]
    images += [apply(v.image.double() / 255, v.params, of_view) for v, of_view in zip(views, policy.views, strict=True)]
    params, encodings = tuple(v.params for v in views), tuple(v.encoding.double() for v in views)
    return Batch(torch.cat(images), params, encodings, decoded.label, decoded.index)


@pytest.mark.parametrize(
    "run", [run if "--equimod" in run else pytest.param(run, marks=pytest.mark.ci) for run in RUNS]
)
def test_twenty_steps_lose_what_they_lost_before(run: str, images: Path, tmp_path: Path) -> None:
    method, *beside = run.split()
    (tmp_path / "recipe.yaml").write_text(SETTINGS.format(recipe=RECIPES / f"{method}_shapes.yaml"))
    small = ["--equivariance.projector", "64", "32"] if "--equimod" in beside else []
    small += ["--rotation.hidden", "64"] if "--essl" in beside else []
    small += {"byol": ["--byol.hidden", "64", "--byol.momentum", "0.5"], "none": []}.get(
        method, [f"--{method.replace('_', '-')}.hidden", "64"]
    )
    config = parse(["--config", str(tmp_path / "recipe.yaml"), *beside, *small])
    records, dist_info = open_records(images), DistInfo(0, 0, 1, torch.device("cpu"))
    pipeline = training_pipeline(config, records, dist_info)
    state = build_train_state(config, records, len(pipeline), dist_info)
    state.model.double()
    curve, total = [], config.epochs * len(pipeline)
    for epoch in range(config.epochs):
        for decoded in pipeline.decoded(epoch):
            batch = _double(decoded, config.augment)
            state.model.before_step(len(curve) / total)
            curve.append(float(train_step(state, batch, state.learning_rate(len(curve)))["loss"]))
    assert len(set(curve)) == 20
    stored = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    if os.environ.get("EQUIMOD_STORE_GOLDEN"):
        stored[run] = curve
        CURVES.write_text(json.dumps(stored, indent=1) + "\n")
    assert curve == pytest.approx(stored[run], rel=TOLERANCE)
