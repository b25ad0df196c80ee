"""Memory of a step, counted on tensors without values, beside torch's own tracker and sums by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from needs import needs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from equimod.benchmarks import gpu_memory
from equimod.benchmarks.gpu_check.workload import DrawnRecords
from equimod.benchmarks.gpu_memory import LiveMemory, card, main, peak_bytes, pipeline_bytes, plans
from equimod.benchmarks.rehearse import Photos, batch_without_values, step
from equimod.models.settings import EncoderSettings, EquiModSettings, SimCLRSettings
from equimod.pipelines import build
from equimod.pipelines.operators import TritonOperators
from equimod.pipelines.prefetch import GPUMemory
from equimod.train.config import RECIPES, Config, read_recipe
from equimod.train.config.optim import OptimSettings
from equimod.train.distributed import DistInfo
from equimod.train.loop import image_dtype
from equimod.train.run import build_model, build_train_state, training_pipeline


@pytest.fixture(scope="module")
def config() -> Config:
    return replace(
        read_recipe(RECIPES / "simclr_equimod_cifar10.yaml"), batch_size=64, data=(Path("records"),), precision="bf16"
    )


_peak_bytes = cache(peak_bytes)


def test_tensors_count_once_and_as_long_as_they_live() -> None:
    memory = LiveMemory()
    held = torch.zeros(10)
    memory.add([held, held[:3]])
    with memory:
        a = torch.zeros(100)
        b = a.view(10, 10)[2:]
        c = a + 1
        del a, c
        d = torch.zeros(50)
    assert memory.peak == 4 * (10 + 100 + 100)
    assert memory.now == 4 * (10 + 100 + 50)
    del b, d
    assert memory.now == 4 * 10


def test_the_peak_is_that_of_torchs_tracker(config: Config) -> None:
    state = build_train_state(config, Photos(), 312, DistInfo(0, 0, 1, torch.device("cpu")))
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = batch_without_values(config, 64, torch.device("cpu"))
        step(state, batch)
        theirs = MemTracker()
        theirs.track_external(state.model, state.optimizer, batch.images)
        with theirs:
            step(state, batch)
        peak = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert _peak_bytes(config, 1) == peak + pipeline_bytes(config, 64) - batch.images.nbytes


class _OnMeta(LiveMemory):
    """Bytes of the tensors on "meta" alone."""

    def add(self, tensors: Iterable[Tensor]) -> None:
        super().add(t for t in tensors if t.is_meta)


@pytest.mark.parametrize("recipe", ["simclr_equimod_cifar10", "byol_equimod_imagenet", "simclr_imagenet"])
def test_what_the_pipeline_holds_is_what_is_alive_while_it_makes_a_batch(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a fiftieth, which is for tables and sums."""
    needs("triton")
    from equimod.pipelines import triton_ops

    monkeypatch.setattr(triton_ops, "_launch", lambda *_, **__: None)
    monkeypatch.setattr(build, "operators_for", lambda device: TritonOperators())
    config = replace(read_recipe(RECIPES / f"{recipe}.yaml"), batch_size=8, backend="native", precision="bf16")
    n, meta = config.batch_size, torch.device("meta")
    size = config.augment.size
    pipeline = training_pipeline(config, DrawnRecords(n, (size, size), raw=True), DistInfo(0, 0, 1, meta))
    decoded = next(pipeline.decoded(0))
    values = len(decoded.images) * n * 3 * size**2
    with _OnMeta() as alive:
        memory = GPUMemory(values, image_dtype(config.precision), meta, SimpleNamespace(Stream=lambda device: None))
        for _ in range(3):
            slot = memory.take()
            batch = pipeline._operated(decoded, slot)
            memory._free.append(slot)
    assert batch.images.nbytes < alive.peak
    assert alive.peak == pytest.approx(pipeline_bytes(config, n), rel=0.02)


def test_parts_take_less_and_keep_the_images_of_the_others(config: Config) -> None:
    whole, quarter = _peak_bytes(config, 1), _peak_bytes(replace(config, batch_size=16), 1)
    held = pipeline_bytes(config, 64) - pipeline_bytes(config, 16)
    assert quarter + held <= _peak_bytes(replace(config, grad_cache=4), 1) < whole


def test_a_rank_has_its_share_and_the_buckets_of_its_gradients(config: Config) -> None:
    model = build_model(config, Photos())
    buckets = sum(p.nbytes for p in model.parameters())
    assert _peak_bytes(config, 4) == _peak_bytes(replace(config, batch_size=16), 1) + buckets


def test_adamw_holds_two_averages_and_what_is_frozen_none_of_them(config: Config) -> None:
    needs("timm")
    encoder = EncoderSettings("test_vit", freeze_patch_embed=True)
    narrow = {"simclr": SimCLRSettings((16,), 8), "equivariance": EquiModSettings(projector=(16, 8), embedding=(8,))}
    lars = replace(config, encoder=encoder, **narrow)  # so that most of the peak is activations, which are the same
    model = build_model(lars, Photos())
    one = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    adamw = replace(lars, optim=OptimSettings("adamw", lr=0.01))
    assert frozen == 4 * (16 * 16 * 3 + 1) * 64
    steps = 4 * sum(p.requires_grad for p in model.parameters())
    assert _peak_bytes(adamw, 1) - _peak_bytes(lars, 1) == one + steps


def test_a_card_keeps_a_reserve() -> None:
    assert card(10 * 2**30) == 16
    assert card(13 * 2**30) == 16
    assert card(14 * 2**30) == 24
    assert card(200 * 2**30) is None


def test_every_recipe_of_the_paper_has_a_plan_with_parts_of_a_gpus_share() -> None:
    recipe = read_recipe(RECIPES / "byol_equimod_imagenet.yaml")
    assert [(config.grad_cache, ranks) for config, ranks in plans("byol_equimod_imagenet", recipe)] == [
        (1, 32),
        (4, 8),
        (32, 1),
    ]


def test_the_result_is_kept(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_memory, "_recipes", lambda: [("simclr_equimod_cifar10", config)])
    assert main(["--output", str(tmp_path / "memory.json")]) == 0
    (row,) = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert row["recipe"] == "simclr_equimod_cifar10"
    assert row["card_gib"] == 12
    assert main(["--output", str(tmp_path / "memory.json" / "under-a-file")]) == 1
