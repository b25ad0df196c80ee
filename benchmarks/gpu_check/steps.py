"""The step alone, on a batch that stays on the device: how fast, and how close to what the card can compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from equimod.benchmarks.gpu_check.clock import matmul_flops, milliseconds
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured
from equimod.benchmarks.gpu_check.workload import config_of, random_batch, state_of
from equimod.benchmarks.measure import Spread
from equimod.benchmarks.rehearse import step
from equimod.models.settings import METHOD_NAMES
from equimod.train.config import Config, SystemSettings

AIM = 2500  # encoder images/s on one H100
Compile = Literal["no", "default", "reduce-overhead"]


def run(job: Job) -> Iterator[Finding]:
    """SimCLR + EquiMod, then every method in bf16, then the other precisions."""
    config = replace(config_of(job, "simclr", True), precision="bf16")
    yield from _in_detail(job, config)
    for method in METHOD_NAMES:
        for equimod in (False, True) if method != "none" else (True,):
            if (method, equimod) != ("simclr", True):
                yield _speed(job, config_of(job, method, equimod))
    yield _speed(job, replace(config, precision="fp16"))
    # Not without TF32, where cuDNN tries out kernels for over a minute.
    yield _speed(job, replace(config, precision="fp32"), " with TF32", tf32=True)


def compiled(job: Job) -> Iterator[Finding]:
    """The same step with the encoder by torch.compile, then in CUDA graphs too."""
    config = config_of(job, "simclr", True)
    modes: tuple[Compile, ...] = job.sized(("default", "reduce-overhead"), ("default",))
    for mode in modes:
        changed = replace(config, system=SystemSettings(compile=mode))
        yield _speed(job, changed, f", --system.compile {mode}")


def _in_detail(job: Job, config: Config) -> Iterator[Finding]:
    state, batch = state_of(job, config), random_batch(config, job.device)
    step(state, batch)  # momenta, and what cuDNN tries out
    with FlopCounterMode(display=False) as counted:
        step(state, batch)
    flops = counted.get_total_flops()
    ms = milliseconds(job.device, lambda: step(state, batch), rounds=job.sized(5, 1), calls=job.sized(4, 1))
    images = _encoder_images(config)
    speed = Spread.of(1e3 * images / m for m in ms)
    yield measured(f"{config.title}, {config.precision}: a step", ms, "ms", f"{images} images through the encoder")
    met = speed.median >= AIM if job.full else None
    yield Finding(
        f"{config.title}, {config.precision}", speed, "encoder images/s", met, f"{AIM:,} on an H100 is the aim"
    )
    yield measured(
        "its convolutions and products", [flops / m / 1e9 for m in ms], "TFLOP/s", f"{flops / 1e12:.2f} TFLOP"
    )
    rate = matmul_flops(job.device, job.sized(8192, 512))
    yield measured("share of this card's matrix product", [1e3 * flops / m / rate for m in ms])
    finite = all(bool(p.isfinite().all()) for p in state.model.parameters())
    yield demand("weights stay finite", finite)


def _speed(job: Job, config: Config, how: str = "", *, tf32: bool = False) -> Finding:
    state, batch = state_of(job, config), random_batch(config, job.device)
    if tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    for _ in range(job.sized(3, 1)):
        step(state, batch)
    ms = milliseconds(job.device, lambda: step(state, batch), rounds=job.sized(3, 1), calls=job.sized(3, 1))
    speeds = (1e3 * _encoder_images(config) / m for m in ms)
    return measured(f"{config.title}, {config.precision}{how}", speeds, "encoder images/s")


def _encoder_images(config: Config) -> int:
    """Images that go through the trained encoder in a step: both views, and x with EquiMod."""
    return (3 if config.equimod else 2) * config.batch_size
