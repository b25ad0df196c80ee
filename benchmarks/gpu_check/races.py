"""Batches that are read while the next ones are made: their content, and that making them takes no more memory in time.

Records are small and stored as pixels, so that the pipeline is far ahead of a consumer that keeps the device busy.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from equimod.benchmarks.gpu_check.clock import synchronize
from equimod.benchmarks.gpu_check.report import Finding, Job, demand
from equimod.benchmarks.gpu_check.workload import DrawnRecords
from equimod.pipelines.batch import Batch
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy, Normalize, ViewPolicy
from equimod.pipelines.sampler import Cursor

BATCH = 64
EPOCHS = (1, 3, 10)  # after which memory is looked at
_EVEN = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # leaves images in [0,1]
_CROPS = POLICIES["simclr_cifar10"].views[0].crop


def run(job: Job) -> Iterator[Finding]:
    """Checksums beside a heavy consumer, then memory and events over ten epochs."""
    yield from _content(job)
    yield from _memory(job)
    yield _second_device(job)


def _pipeline(job: Job, policy: AugmentationPolicy, device: torch.device, batches: int) -> Pipeline:
    records = DrawnRecords(BATCH * batches, (32, 32), raw=True)
    return build_pipeline(records, policy, batch_size=BATCH, seed=0, device=device, workers=job.sized(8, 2))


def _content(job: Job) -> Iterator[Finding]:
    batches = job.sized(200, 20)
    # Crops and flips alone come to the same bytes on every device, whatever it rounds.
    view = ViewPolicy(_CROPS, _EVEN)
    exact = AugmentationPolicy(CenterPolicy(32, 32, _EVEN), (view, view))
    wanted = list(_checksums(job, exact, torch.device("cpu"), batches, scale=255))
    found = list(_checksums(job, exact, job.device, batches, scale=255, heavy=True))
    wrong = sum(not torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))
    yield demand(f"{batches} batches beside a heavy consumer: bytes as on the CPU", wrong == 0, wrong, "differ")
    yield _alike(job, f"{batches} whole batches: the same bits beside a heavy consumer as alone", batches)


def _alike(job: Job, name: str, batches: int) -> Finding:
    whole = POLICIES["simclr_cifar10"]
    quiet, busy = (list(_checksums(job, whole, job.device, batches, heavy=heavy)) for heavy in (False, True))
    wrong = sum(not torch.equal(a, b) for a, b in zip(quiet, busy, strict=True))
    return demand(name, wrong == 0, wrong, "differ")


def _checksums(
    job: Job, policy: AugmentationPolicy, device: torch.device, batches: int, *, scale: int = 0, heavy: bool = False
) -> Iterator[Tensor]:
    """A sum a batch over everything in it. `heavy`: behind other work, so that the next batches are made before.

    With a `scale`, images count as whole multiples of 1 / scale.
    """
    pipeline = _pipeline(job, policy, device, job.sized(20, 5))
    load = torch.randn(2 * [job.sized(4096, 256)], device=device)
    for batch in islice(pipeline.epochs(Cursor(0, 0), batches), batches):
        if heavy:
            for _ in range(job.sized(8, 2)):
                load = (load @ load).clamp_(-1, 1)
        yield _checksum(batch, scale)
        if not heavy:
            synchronize(device)


def _checksum(batch: Batch, scale: int) -> Tensor:
    images = batch.images.double()
    levels = (scale * images).round() if scale else images
    parts = [levels, *(encoding.double() for encoding in batch.encodings), batch.label.double()]
    return torch.stack([(t.flatten() * _weights(t)).sum() for t in parts])


def _weights(t: Tensor) -> Tensor:
    return torch.arange(t.numel(), device=t.device, dtype=torch.float64) % 251 + 1


def _memory(job: Job) -> Iterator[Finding]:
    pipeline = _pipeline(job, POLICIES["simclr_cifar10"], job.device, job.sized(20, 3))
    held, events = [], []
    for epoch in range(1, max(EPOCHS) + 1):
        for _ in pipeline.epoch(epoch):
            pass
        if epoch in EPOCHS:
            synchronize(job.device)
            held.append(_held_bytes(job.device))
            events.append(sum(issubclass(type(thing), torch.cuda.Event) for thing in gc.get_objects()))
    told = ", ".join(f"{count / 2**20:.0f}" for count in held)
    after = ", ".join(map(str, EPOCHS))
    yield demand(
        f"memory stays the same after {after} epochs", held[-1] <= held[0], held[-1] / 2**20, "MiB", f"{told} MiB"
    )
    told = ", ".join(map(str, events))
    yield demand(f"CUDA events do not pile up over {after} epochs", events[-1] <= events[0], events[-1], note=told)


def _held_bytes(device: torch.device) -> int:
    """What the allocator has taken from a GPU; on a CPU the tensors that are alive."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.device == device]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _second_device(job: Job) -> Finding:
    """A pipeline for another GPU than the current one must order that one's streams."""
    name = "a pipeline on a GPU that is not the current one: the same bits"
    if torch.cuda.device_count() < 2:
        return Finding(name, note="needs two GPUs")
    return _alike(replace(job, device=torch.device("cuda", 1)), name, 20)
