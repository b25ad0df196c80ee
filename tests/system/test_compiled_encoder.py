"""A compiled encoder computes what the other does, and is refused at once where nothing compiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from needs import needs_compiler

from equimod.benchmarks.rehearse import Photos, batch_without_values
from equimod.train.config import RECIPES, Config, SystemSettings, read_recipe
from equimod.train.distributed import DistInfo
from equimod.train.loop import train_step
from equimod.train.run import build_train_state

ALONE = DistInfo(0, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def config() -> Config:
    recipe = read_recipe(RECIPES / "byol_equimod_cifar10.yaml")
    encoder = replace(recipe.encoder, arch="resnet10", width=8)
    return replace(recipe, data=(Path("records"),), batch_size=8, precision="fp32", encoder=encoder)


def _first_losses(config: Config) -> list[float]:
    parts = build_train_state(config, Photos(), 312, ALONE)
    batch = batch_without_values(config, 8, ALONE.device)
    g = torch.Generator().manual_seed(0)
    encodings = tuple(torch.rand(t.shape, generator=g) for t in batch.encodings)
    batch = replace(batch, images=torch.rand(batch.images.shape, generator=g), encodings=encodings)
    return [float(train_step(parts, batch, 0.1)["loss"]) for _ in range(2)]


@pytest.mark.ci
def test_a_compiled_encoder_computes_what_the_other_does(config: Config) -> None:
    needs_compiler()
    # With a layer that is read on the way, which BYOL's target is not.
    config = replace(config, equivariance=replace(config.equivariance, layer="layer2"))
    compiled = replace(config, system=SystemSettings(compile="default"))
    torch._dynamo.reset()
    found = _first_losses(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # the encoder and BYOL's target
    assert found == pytest.approx(_first_losses(config), rel=1e-4)


def test_a_compiled_model_keeps_its_names(config: Config) -> None:
    needs_compiler()
    names = [
        list(build_train_state(c, Photos(), 312, ALONE).model.state_dict())
        for c in (config, replace(config, system=SystemSettings(compile="reduce-overhead")))
    ]
    assert names[0] == names[1]


def test_no_compiler_is_said_at_once(config: Config) -> None:
    from torch._inductor.config import patch

    compiled = replace(config, system=SystemSettings(compile="default"))
    with (
        patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ValueError, match=r"needs a C\+\+ compiler: apt-get install g\+\+"),
    ):
        build_train_state(compiled, Photos(), 312, ALONE)
