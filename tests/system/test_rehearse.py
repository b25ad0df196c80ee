"""The trainer's own step at the paper's size, on tensors without values: nothing in it waits for the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from needs import needs
from torch import Tensor

from equimod.benchmarks import rehearse as rehearse_module
from equimod.benchmarks.rehearse import embedding_bytes, main, paper_config, pretended_ranks, rehearse
from equimod.models import simclr
from equimod.models.losses import nt_xent
from equimod.models.settings import METHOD_NAMES, MethodName
from equimod.train.config import RECIPES, read_recipe
from equimod.train.distributed import DistInfo


@pytest.fixture
def dist_info() -> Iterator[DistInfo]:
    with pretended_ranks(32) as pretended:
        yield pretended


@pytest.mark.parametrize(
    "equimod", [pytest.param(False, marks=pytest.mark.ci, id="alone"), pytest.param(True, id="equimod")]
)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_step_of_every_method_runs_as_rank_0_of_32(method: MethodName, equimod: bool, dist_info: DistInfo) -> None:
    if method == "none" and not equimod:
        return
    found = rehearse(paper_config(method, equimod, 4096, 1), dist_info)
    forwards = 3 * (3 if equimod else 2) + (2 if method == "byol" else 0)  # of a view; backward counts twice
    of_resnet50 = 128 * 2 * 4.09e9 / 1e12  # multiplications and additions of 128 images
    assert found["tflop"] == pytest.approx(forwards * of_resnet50, rel=0.03)
    embeddings = 2 * 128 * 128 * 4  # of two views
    gathered, summed = embedding_bytes(found)
    assert gathered == embeddings * ((method == "simclr") + equimod)
    assert summed >= 0
    of_backbone = 26_560  # channels that ResNet-50 normalises
    assert found["batchnorm"]["channels"] >= of_backbone * (2 if method == "byol" else 1)


def test_a_step_of_a_vision_transformer_with_adamw_runs_too(dist_info: DistInfo) -> None:
    needs("timm")
    config = replace(
        read_recipe(RECIPES / "simclr_equimod_vits16_imagenet.yaml"), data=(Path("imagenet"),), precision="fp32"
    )
    found = rehearse(config, dist_info)
    of_vits16 = 128 * 2 * 4.6e9 / 1e12  # multiplications and additions of 128 images
    assert found["tflop"] == pytest.approx(3 * 3 * of_vits16, rel=0.02)


def test_parts_cost_one_more_forward_pass(dist_info: DistInfo) -> None:
    whole, parts = (rehearse(paper_config("simclr", True, 4096, n), dist_info)["tflop"] for n in (1, 4))
    assert parts / whole == pytest.approx(4 / 3, rel=0.02)


def _waits(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    loss = nt_xent(z_i, z_j, temperature)
    return loss if loss.item() < 10 else loss / 2


def _elsewhere(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    return nt_xent(z_i, z_j + torch.ones(z_j.shape[1]), temperature)


@pytest.mark.parametrize("fault", [_waits, _elsewhere])
def test_a_wait_for_the_device_or_a_tensor_elsewhere_raises(
    fault: object, dist_info: DistInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simclr, "nt_xent", fault)
    with pytest.raises(RuntimeError, match="meta"):
        rehearse(paper_config("simclr", False, 4096, 1), dist_info)


def test_the_result_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rehearse_module, "METHOD_NAMES", ("simclr", "none"))
    output = tmp_path / "rehearse.json"
    assert main(["--ranks", "64", "--batch-size", "512", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["method"], row["equimod"]) for row in rows] == [("simclr", False), ("simclr", True), ("none", True)]
    assert {row["images_a_rank"] for row in rows} == {8}
    assert main(["--ranks", "3"]) == 2
    assert "ranks=3 must be 2 or more and divide batch_size=4096" in capsys.readouterr().err
