"""apex's batch norm takes over where it can, and is refused with the remedy where it cannot."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from equimod.models.batchnorm import SyncBatchNorm
from equimod.models.encoder import Encoder, build_encoder
from equimod.train.config import RECIPES, Config, read_recipe
from equimod.train.distributed import DistInfo, sync_batchnorm

GPUS = DistInfo(0, 0, 2, torch.device("cuda"))


@pytest.fixture(scope="module")
def config() -> Config:
    recipe = read_recipe(RECIPES / "byol_equimod_cifar10.yaml")
    encoder = replace(recipe.encoder, arch="resnet10", width=8)
    return replace(recipe, data=(Path("records"),), batch_size=8, precision="fp32", encoder=encoder)


class _GroupBatchNorm2d(nn.modules.batchnorm._BatchNorm):
    """Takes what apex's takes."""

    def __init__(self, num_features: int, group_size: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.group_size = group_size


@pytest.fixture
def encoder(config: Config) -> Encoder:
    return build_encoder(config.encoder)


def test_apex_takes_over_the_batch_norms_of_images(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("apex.contrib.cudnn_gbn")
    module.GroupBatchNorm2d = _GroupBatchNorm2d
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
    assert isinstance(norms[-1], SyncBatchNorm)
    assert list(model.state_dict()) == names
    assert all(after is before[name] for name, after in model.named_parameters())


def test_apex_is_refused_where_it_cannot_work(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="runs on GPUs, not on cpu"):
        sync_batchnorm(encoder, DistInfo(0, 0, 2, torch.device("cpu")), "apex")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="reaches the 1 ranks of a node, not all 2"):
        sync_batchnorm(encoder, GPUS, "apex")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(ValueError, match=r"git clone --recursive https://github.com/NVIDIA/apex .* pip install"):
        sync_batchnorm(encoder, GPUS, "apex")
