"""A step launches few kernels beside those of its layers."""

from __future__ import annotations

import pytest
import torch
from launches import Launches
from torch import nn

from equimod.benchmarks.gpu_memory import LiveMemory
from equimod.models.byol import BYOL, _follow
from equimod.models.encoder import Encoder, build_encoder
from equimod.models.losses import equimod_loss, log_sum_exp
from equimod.models.settings import BYOLSettings, EncoderSettings
from equimod.train.grad_cache import _buffers_kept
from equimod.train.lars import LARS, lars_groups

META = torch.device("meta")


@pytest.fixture
def resnet50() -> Encoder:
    return build_encoder(EncoderSettings("resnet50", "imagenet")).to(META).to(memory_format=torch.channels_last)


def test_lars_updates_a_resnet50_in_few_launches(resnet50: Encoder) -> None:
    optimizer = LARS(lars_groups(resnet50), lr=1.0, weight_decay=1e-6)
    for p in resnet50.parameters():
        p.grad = torch.empty_like(p)
    optimizer.step()  # momenta are made
    with Launches() as launches:
        optimizer.step()
    assert launches.of["_foreach_mul"] == 1
    assert launches.of.total() <= 19


def test_gradients_laid_out_otherwise_are_counted_one_by_one(resnet50: Encoder) -> None:
    """What the count is worth: the same step on gradients in another layout."""
    optimizer = LARS(lars_groups(resnet50), lr=1.0)
    for p in resnet50.parameters():
        p.grad = torch.empty(p.shape, device=META)
    with Launches() as launches:
        optimizer.step()
    assert launches.of["_foreach_add_"] > 50


def test_a_target_network_follows_in_two_launches(resnet50: Encoder) -> None:
    method = BYOL(resnet50, BYOLSettings()).to(META)
    with Launches() as launches:
        _follow(method.target_encoder, resnet50, 0.1)
    assert launches.of == {"_foreach_lerp_": 1, "_foreach_copy_": 1}


def test_buffers_are_kept_in_four_launches(resnet50: Encoder) -> None:
    with Launches() as launches, _buffers_kept(resnet50):
        pass
    assert launches.of == {"_foreach_copy_": 4}


def test_a_module_without_buffers_has_none_to_keep() -> None:
    with _buffers_kept(nn.Linear(2, 2)):
        pass


ROWS_COLUMNS_MOST = [(256, 8192, 20), (8192, 8192, 53), (256, 65536, 20), (256, 131072, 20)]


@pytest.mark.parametrize(("rows", "columns", "most"), ROWS_COLUMNS_MOST)
def test_a_contrastive_loss_takes_few_launches(rows: int, columns: int, most: int) -> None:
    """Forward and backward of one rank of 32, of one alone, and of one among many; blocks stay below 128 MiB."""
    with Launches() as launches:
        _contrast(rows, columns)
    assert launches.of.total() <= most
    assert launches.largest <= 2**27


@pytest.mark.parametrize(("rows", "columns"), [(8192, 8192), (256, 131072)])
def test_a_contrastive_loss_holds_one_block_at_a_time(rows: int, columns: int) -> None:
    memory = LiveMemory()
    with memory:
        _contrast(rows, columns)
    inputs_and_gradients = 2 * (rows + columns) * 128 * 4
    assert memory.peak < 2**27 + inputs_and_gradients + 2**20


def _contrast(rows: int, columns: int) -> None:
    own, all_columns = (torch.empty(n, 128, device=META, requires_grad=True) for n in (rows, columns))
    excluded = tuple(torch.empty(rows, dtype=torch.int64, device=META) for _ in range(2))
    log_sum_exp(own, all_columns, excluded).sum().backward()


def test_the_equivariance_loss_excludes_two_columns_in_as_many_launches() -> None:
    z = [torch.empty(256, 128, device=META, requires_grad=True) for _ in range(4)]
    with Launches() as launches:
        equimod_loss(*z, temperature=0.2).backward()
    assert launches.of["scatter_"] == 2
