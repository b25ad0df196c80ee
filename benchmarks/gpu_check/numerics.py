"""Numbers that must come out: the precision asked for, the gradient in parts, the scaler, a resume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from equimod.benchmarks.gpu_check.report import Finding, Job, demand
from equimod.benchmarks.gpu_check.workload import config_of, random_batch, state_of
from equimod.benchmarks.rehearse import step
from equimod.models.settings import EncoderSettings
from equimod.pipelines.batch import Batch
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records.protocol import Fingerprint
from equimod.pipelines.sampler import Cursor
from equimod.train import checkpoint
from equimod.train.config import Config
from equimod.train.loop import TrainState, train_step

FLOAT32 = 5e-5  # relative: products and convolutions in TF32 are off by 5e-4
GRADIENT = 1e-3  # relative, of the whole gradient, between a batch at once and in four parts in float32


def run(job: Job) -> Iterator[Finding]:
    """Float32 first: what comes after switches TF32 off by hand and makes cuDNN deterministic."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product: for the same bits
    config = _config(job)
    yield from _float32(job, config)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield _in_parts(job, config)
    yield from _scaler(job, config)
    yield _resumed(job, config)


def _config(job: Job) -> Config:
    """ResNet-18 for CIFAR-10: without max-pool, whose gradient CUDA sums up in any order."""
    config = replace(config_of(job, "simclr", True), batch_size=job.sized(32, 8), precision="fp32")
    encoder = job.sized(EncoderSettings(), config.encoder)
    return replace(config, encoder=encoder, dataset="cifar10", augment=POLICIES["simclr_cifar10"])


def _float32(job: Job, config: Config) -> Iterator[Finding]:
    """Whether --precision fp32 computes in float32, once the trainer has set up what it sets up."""
    state_of(job, config)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 64, 28, 28, generator=generator, dtype=torch.float64)
    weight = torch.randn(64, 64, 3, 3, generator=generator, dtype=torch.float64)
    a, b = (torch.randn(512, 512, generator=generator, dtype=torch.float64) for _ in range(2))
    cases: tuple[tuple[str, tuple[Tensor, ...], Callable[..., Tensor]], ...] = (
        ("convolutions", (x, weight), nn.functional.conv2d),
        ("matrix products", (a, b), torch.matmul),
    )
    for name, inputs, operator in cases:
        wanted = operator(*inputs)
        found = operator(*(t.float().to(job.device) for t in inputs)).cpu().double()
        error = ((found - wanted).abs().max() / wanted.abs().max()).item()
        yield demand(f"fp32: {name} are float32, not TF32", error <= FLOAT32, error, "relative error")


def _in_parts(job: Job, config: Config) -> Finding:
    """The gradient of a batch in four parts, with norms in eval mode, which would see the parts."""
    state, batch = state_of(job, config), random_batch(config, job.device)
    state.model.eval()
    gradients = []
    for chunks in (1, 4):
        state.optimizer.zero_grad(set_to_none=True)
        replace(state.grad_cache, chunks=chunks)(batch)
        gradients.append([p.grad.double() for p in state.model.parameters() if p.grad is not None])
    whole, in_parts = gradients
    distance = _norm([a - b for a, b in zip(whole, in_parts, strict=True)]) / _norm(whole)
    return demand("gradient in 4 parts equals that at once", distance <= GRADIENT, distance, "relative distance")


def _norm(tensors: list[Tensor]) -> float:
    return torch.stack([t.square().sum() for t in tensors]).sum().sqrt().item()


def _scaler(job: Job, config: Config) -> Iterator[Finding]:
    """fp16: a batch whose gradient is not finite changes no weight and halves the scale; the next one trains."""
    config = replace(config, precision="fp16")
    state, batch = state_of(job, config), random_batch(config, job.device)
    scaler = state.grad_cache.scaler
    for _ in range(20):  # until the first scale, 65,536, has come down to what this model bears
        before, scale = _weights(state), scaler.get_scale()
        step(state, batch)
        if not _same(before, _weights(state)):
            break
    yield demand("fp16: a step trains", not _same(before, _weights(state)), scaler.get_scale(), "scale")
    before, scale = _weights(state), scaler.get_scale()
    first = torch.zeros(1, dtype=torch.long, device=job.device)
    train_step(state, replace(batch, images=batch.images.index_fill(0, first, torch.inf)), 1.0)
    skipped = _same(before, _weights(state)) and scaler.get_scale() == scale / 2
    yield demand(
        "fp16: an infinite gradient changes no weight and halves the scale", skipped, scaler.get_scale(), "scale"
    )


def _weights(state: TrainState) -> list[Tensor]:
    return [p.detach().clone() for p in state.model.parameters()]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _resumed(job: Job, config: Config) -> Finding:
    """Two steps, a checkpoint, two more: a state restored from it must take the last two to the same bits."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    name = "resumed from a checkpoint: the same bits as without a stop"
    batch = random_batch(config, job.device)
    state = _deterministic(job, config)
    for _ in range(2):
        step(state, batch)
    folder: Path = job.scratch / "checkpoints"
    drawn = Fingerprint("drawn", "", "")
    checkpoint.save(folder, Cursor(0, 2), 2, state, config, drawn)
    losses = [_loss(state, batch) for _ in range(2)]
    other = _deterministic(job, replace(config, seed=1))
    checkpoint.restore(checkpoint.open_checkpoint(checkpoint.step_folder(folder, 2)), other, records=drawn)
    again = [_loss(other, batch) for _ in range(2)]
    torch.use_deterministic_algorithms(False)
    met = losses == again and _same(_weights(state), _weights(other))
    return demand(name, met, losses[0], "next loss", "" if met else f"{again[0]} after the resume")


def _deterministic(job: Job, config: Config) -> TrainState:
    state = state_of(job, config)
    torch.backends.cudnn.benchmark = False  # which the trainer switches on
    return state


def _loss(state: TrainState, batch: Batch) -> float:
    state.model.before_step(0.5)
    return train_step(state, batch, 1.0)["loss"].item()
