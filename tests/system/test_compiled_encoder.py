"""Compiled encoders and apex's batch norm: faster ways to the same numbers, and clear refusals where they cannot be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from needs import needs_compiler
from torch import nn

from equimod.benchmarks.rehearse import Photos, batch_without_values
from equimod.models.encoder import Encoder
from equimod.train.config import RECIPES, Config, SystemSettings, read_recipe
from equimod.train.distributed import World, sync_batchnorm
from equimod.train.loop import train_step
from equimod.train.run import training_parts

ALONE = World(0, 0, 1, torch.device("cpu"))
GPUS = World(0, 0, 2, torch.device("cuda"))


@pytest.fixture(scope="module")
def config() -> Config:
    recipe = read_recipe(RECIPES / "byol_equimod_cifar10.yaml")
    encoder = replace(recipe.encoder, arch="resnet10", width=8)
    return replace(recipe, data=Path("records"), batch_size=8, precision="fp32", encoder=encoder)


def _first_losses(config: Config) -> list[float]:
    parts = training_parts(config, Photos(), 312, ALONE)
    batch = batch_without_values(config, 8, ALONE.device)
    g = torch.Generator().manual_seed(0)
    views = tuple(
        replace(
            view,
            image=torch.rand(view.image.shape, generator=g),
            encoding=torch.rand(view.encoding.shape, generator=g),
        )
        for view in batch.views
    )
    batch = replace(batch, x=torch.rand(views[0].image.shape, generator=g), views=views)
    return [float(train_step(parts, batch, 0.1)["loss"]) for _ in range(2)]


def test_a_compiled_encoder_computes_what_the_other_does(config: Config) -> None:
    needs_compiler()
    compiled = replace(config, system=SystemSettings(compile="default"))
    torch._dynamo.reset()
    found = _first_losses(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # the encoder and BYOL's target
    assert found == pytest.approx(_first_losses(config), rel=1e-4)


def test_a_compiled_model_keeps_its_names(config: Config) -> None:
    needs_compiler()
    names = [
        list(training_parts(c, Photos(), 312, ALONE).model.state_dict())
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
        training_parts(compiled, Photos(), 312, ALONE)


class _GroupBatchNorm2d(nn.modules.batchnorm._BatchNorm):
    """Takes what apex's takes."""

    def __init__(self, num_features: int, group_size: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.group_size = group_size


@pytest.fixture
def encoder(config: Config) -> Encoder:
    return Encoder(config.encoder)


def test_apex_takes_over_the_batch_norms_of_images(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("apex.contrib.cudnn_gbn")
    module.GroupBatchNorm2d = _GroupBatchNorm2d  # type: ignore[attr-defined]
    for name in ("apex", "apex.contrib"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "apex.contrib.cudnn_gbn", module)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Sequential(nn.BatchNorm1d(4))})
    before, names = dict(model.named_parameters()), list(model.state_dict())
    eps = encoder.bn1.eps
    sync_batchnorm(model, GPUS, "apex")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(m, _GroupBatchNorm2d) and m.group_size == 2 and m.eps == eps for m in norms[:-1])
    assert isinstance(norms[-1], nn.SyncBatchNorm)
    assert list(model.state_dict()) == names
    assert all(after is before[name] for name, after in model.named_parameters())


def test_apex_is_refused_where_it_cannot_work(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="runs on GPUs, not on cpu"):
        sync_batchnorm(encoder, World(0, 0, 2, torch.device("cpu")), "apex")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="reaches the 1 ranks of a node, not all 2"):
        sync_batchnorm(encoder, GPUS, "apex")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(ValueError, match=r"git clone --recursive https://github.com/NVIDIA/apex .* pip install"):
        sync_batchnorm(encoder, GPUS, "apex")
