"""The loader backends that are installed: how fast, and how far their pixels are from torchvision's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, count, islice

import torch

from equimod.benchmarks.gpu_check.clock import synchronize
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured
from equimod.benchmarks.gpu_check.workload import photos
from equimod.benchmarks.loaders import RepeatedRecords, as_beton
from equimod.benchmarks.reference import cut
from equimod.pipelines.backends import BackendUnavailableError
from equimod.pipelines.backends.choose import PACKAGES, installed
from equimod.pipelines.batch import Decoded
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.cores import available_cores
from equimod.pipelines.policy import POLICIES, AugmentationPolicy
from equimod.pipelines.records.protocol import Records

LEVELS = {"native": 0.5, "dali": 0.5, "ffcv": 2.0}  # of 255: mean distance to torchvision that docs/formats.md promises
COMPARED = 8  # samples of a batch


def run(job: Job) -> Iterator[Finding]:
    """x and two crops a sample, uint8, where the backend makes them."""
    policy = POLICIES[job.sized("simclr_imagenet", "simclr_cifar10")]
    for name in PACKAGES:
        if not installed(name):
            yield Finding(name, note="not installed")
            continue
        try:
            records, pipeline = _pipeline(job, name, policy)
        except BackendUnavailableError as error:
            yield Finding(name, note=str(error))
            continue
        yield measured(name, _speeds(job, pipeline), "images/s", f"{available_cores()} threads")
        batch = next(iter(pipeline.decoded(0)))
        distance, where = _distance(records, batch, policy), batch.views[0].image.device.type
        met = distance <= LEVELS[name]
        yield demand(f"{name}: pixels as torchvision's", met, distance, "levels of 255", f"decoded on the {where}")


def _pipeline(job: Job, name: str, policy: AugmentationPolicy) -> tuple[Records, Pipeline]:
    batch = job.sized(128, 16)
    records: Records = RepeatedRecords(photos(job)[0], 20 * batch)
    if name == "ffcv":
        records = as_beton(records, job.scratch / "ffcv.beton")
    return records, build_pipeline(records, policy, backend=name, batch_size=batch, seed=0, device=job.device)


def _distance(records: Records, batch: Decoded, policy: AugmentationPolicy) -> float:
    """The mean over x and crops of the first samples, in levels of 255, to torchvision on Pillow."""
    found = torch.stack(batch.images, 1)[:COMPARED].cpu()
    wanted = [cut(records.read(int(batch.index[row])), batch, row, policy) for row in range(len(found))]
    return (found.float() - torch.stack([torch.stack(images) for images in wanted]).float()).abs().mean().item()


def _speeds(job: Job, pipeline: Pipeline) -> list[float]:
    """Images a second of three rounds."""
    batches = chain.from_iterable(map(pipeline.decoded, count()))
    steps, found = job.sized(20, 3), []
    for _ in range(4):
        began, images = time.perf_counter(), 0
        for batch in islice(batches, steps):
            images += len(batch)
        synchronize(job.device)
        found.append(images / (time.perf_counter() - began))
    return found[1:]
