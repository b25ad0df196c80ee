"""Benchmarks on a GPU: contenders take it in turns, its events time them, and what they apply was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from equimod.benchmarks import augmenters, benchmark
from equimod.benchmarks.augmenters import AUGMENTS, AugmentSettings
from equimod.benchmarks.benchmark import Benchmark
from equimod.benchmarks.compare_loaders import Loader
from equimod.benchmarks.compare_operators import Augment
from equimod.benchmarks.compare_training import Step
from equimod.benchmarks.measure import GPUClock, HostClock, Round

TRAINER = ("--method=simclr", "--dataset=shapes", "--output=none")


def _settings(device: str) -> AugmentSettings:
    return AugmentSettings("simclr_cifar10", batch_size=4, images=8, threads=1, device=device)


def test_what_works_on_a_gpu_is_alone_there_and_timed_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, type[HostClock]]] = []

    def interleave(
        contenders: dict[str, Any], settings: Any, rounds: int, *, alone: bool, clock: type[HostClock]
    ) -> Iterator[dict[str, Round]]:
        asked.append((alone, clock))
        for peak in range(rounds + 1):
            yield {name: Round(8, 1.0, 1.0, 0, 0.5, peak) for name in contenders}

    monkeypatch.setattr(benchmark, "interleave", interleave)
    result = Augment(device="cuda:1", rounds=3).measure()
    assert {name: found["gpu_peak_bytes"] for name, found in result["contenders"].items()} == {
        "equimod": 3,
        "torchvision": 3,
        "pillow": 3,
    }
    Augment(device="cpu").measure()
    assert asked == [(True, GPUClock), (False, HostClock)]


@pytest.mark.parametrize(("gpus", "device", "on_gpu"), [(1, "auto", True), (1, "cpu", False), (0, "auto", False)])
def test_training_is_timed_on_a_gpu_where_it_takes_one(
    gpus: int, device: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    command: Benchmark = Step(trainer=(*TRAINER, f"--system.device={device}"))
    assert command.on_gpu() == on_gpu
    assert not Loader(records=Path("records")).on_gpu()


@pytest.mark.parametrize("name", ["equimod", "one_by_one"])
def test_own_operators_draw_nothing_while_they_are_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings("cpu")
    augment = AUGMENTS[name](settings)
    monkeypatch.setattr(augmenters, "draw", lambda *_, **__: pytest.fail("draws in the timed part"))
    assert [len(views) for batch in range(2) if (views := augment(augmenters.crops(settings), batch))] == [2, 2]


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_operators_make_their_gpu_the_current_one(device: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(augmenters, "crops", lambda _: ())
    augmenters._load(lambda _: lambda views, number: views, _settings(device))
    assert chosen == [index]
