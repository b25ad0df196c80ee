"""Runs from one seed with each backend: their losses differ by what the difference of the pixels explains."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from needs import needs

from equimod.pipelines.backends import BACKENDS, BackendFactory, Images, Request
from equimod.pipelines.backends.native_backend import NativeBackend
from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records.tar import TarRecords
from equimod.train.main import main

NOISE = {"dali": 0.5, "ffcv": 2.0}  # mean distance of the pixels from native's that is allowed, levels of 255
STEPS = 20
RECIPE = """
extends: {recipe}
epochs: 2
batch_size: 32
precision: fp32
policy: simclr_shapes
encoder: {{arch: resnet10, width: 8}}
simclr: {{hidden: [32], dim: 16}}
equivariance: {{projector: [32, 16], embedding: [16]}}
optim: {{warmup_epochs: 1, lr: 0.02}}
log: {{every: 1}}
system: {{device: cpu}}
"""


def _noisy(mean: float) -> BackendFactory:
    """The native backend with integer noise of the given mean size on every pixel."""

    class Noisy(NativeBackend):
        def load(self, requests: Iterator[Request]) -> Iterator[Images]:
            generator = torch.Generator().manual_seed(0)

            def noise(image: torch.Tensor) -> torch.Tensor:
                amount = torch.empty(image.shape).uniform_(-2 * mean, 2 * mean, generator=generator)
                return (image + amount).round().clamp(0, 255).to(torch.uint8)

            for images in super().load(requests):
                yield Images(None if images.x is None else noise(images.x), tuple(map(noise, images.views)))

    return Noisy


@pytest.fixture(scope="module")
def losses(imagenet_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., torch.Tensor]:
    """Losses of a run on real ImageNet files, by backend (or the noise put on native's pixels) and seed."""
    folder = tmp_path_factory.mktemp("losses")
    convert(imagenet_sample, folder / "tar", ConversionSettings(workers=2))
    records = TarRecords(folder / "tar")
    write_beton(records, folder / "sample.beton", records.manifest)
    recipe = folder / "tiny.yaml"
    shapes = Path(__file__).parents[2] / "train" / "recipes" / "simclr_equimod_shapes.yaml"
    recipe.write_text(RECIPE.format(recipe=os.path.relpath(shapes, folder)), encoding="utf-8")

    @cache
    def run(backend: str = "native", noise: float = 0.0, seed: int = 0) -> torch.Tensor:
        output = folder / f"{backend}-{noise}-{seed}"
        options = {"config": recipe, "data": records.folder.parent / "sample.beton", "output": output, "seed": seed}
        with pytest.MonkeyPatch.context() as patch:
            if noise:
                patch.setitem(BACKENDS, "native", lambda: _noisy(noise))
            arguments = [f"--{name}={value}" for name, value in options.items()]
            assert main([*arguments, "--backend", backend]) == 0
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return torch.tensor([event["loss"] for event in events if event["event"] == "step"])

    return run


@pytest.mark.parametrize("backend", ["dali", "ffcv"])
def test_losses_differ_from_natives_by_no_more_than_noise_of_the_pixel_tolerance_makes(
    losses: Callable[..., torch.Tensor], backend: str
) -> None:
    needs(backend)
    native, other, noisy = losses(), losses(backend), losses(noise=NOISE[backend])
    assert len(native) == len(other) == STEPS
    difference, explained = (other - native).abs(), (noisy - native).abs()
    assert 0 < difference.mean() <= 2 * explained.mean(), (difference.mean(), explained.mean())


def test_another_seed_makes_losses_differ_by_far_more(losses: Callable[..., torch.Tensor]) -> None:
    """The test above could not fail if the losses were all alike."""
    other = (losses(seed=1) - losses()).abs().mean()
    assert other > 5 * (losses(noise=NOISE["ffcv"]) - losses()).abs().mean()
