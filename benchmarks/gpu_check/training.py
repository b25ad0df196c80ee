"""Training through the pipeline beside the step alone, and the memory that it takes beside what was predicted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice

import torch

from equimod.benchmarks.gpu_check.clock import synchronize
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured
from equimod.benchmarks.gpu_check.workload import alone, config_of, photos, random_batch, state_of
from equimod.benchmarks.gpu_memory import LiveMemory, peak_bytes
from equimod.benchmarks.loaders import RepeatedRecords
from equimod.benchmarks.measure import Spread, Workload, interleave
from equimod.benchmarks.rehearse import step
from equimod.pipelines.build import Pipeline
from equimod.pipelines.cores import available_cores
from equimod.pipelines.sampler import Cursor
from equimod.train.config import Config
from equimod.train.run import training_pipeline
from equimod.train.time_spent import time_spent

AIM = 0.97  # of the step alone
NEAR = (0.85, 1.1)  # of the predicted memory
CONTENDER_BYTES = 2**30  # that each of two contenders holds


def run(job: Job) -> Iterator[Finding]:
    """The step alone and training take turns."""
    config, (pipeline, note) = _config(job), _pipeline(job)
    state, resident = state_of(job, config), random_batch(config, job.device)
    through = replace(state, grad_cache=replace(state.grad_cache, stages=pipeline.stages))
    batches = pipeline.stages.record_each("wait", pipeline.epochs(Cursor(0, 0), sys.maxsize))
    steps, rounds = job.sized(20, 2), job.sized(5, 2)

    def step_alone() -> None:
        for _ in range(steps):
            step(state, resident)

    def train() -> None:
        for batch in islice(batches, steps):
            step(through, batch)

    step_alone()
    train()
    synchronize(job.device)
    before, cpu = pipeline.stages.seconds(), 0.0
    of_step: list[float] = []
    of_training: list[float] = []
    for _ in range(rounds):
        of_step.append(_seconds(job.device, step_alone))
        began = time.process_time()
        of_training.append(_seconds(job.device, train))
        cpu += time.process_time() - began
    images, wall = steps * config.batch_size, sum(of_training)
    yield measured("step alone", [images / s for s in of_step], "images/s")
    yield measured("training through the pipeline", [images / s for s in of_training], "images/s", note)
    share = Spread.of(a / t for a, t in zip(of_step, of_training, strict=True))
    yield Finding("share of the step alone", share, "", share.median >= AIM if job.full else None, f"aim: {AIM}")
    yield measured("cores that training keeps busy", [cpu / wall], "", f"of {available_cores()}")
    after = pipeline.stages.seconds()
    since = {name: total - before.get(name, 0.0) for name, total in after.items()}
    spent = time_spent(since, wall, rounds * images, loader_threads=pipeline.workers, on_gpu=pipeline.stages.on_gpu)
    yield measured("data wait", [spent.data_wait], "of the time", spent.limit.partition(": ")[2])


def memory(job: Job) -> Iterator[Finding]:
    """The peak of a training through the pipeline, beside the prediction of gpu_memory.py; then that of benchmarks."""
    config, (pipeline, _) = _config(job), _pipeline(job)
    predicted = peak_bytes(config, 1)
    state = state_of(job, config)
    batches = islice(pipeline.epochs(Cursor(0, 0), sys.maxsize), job.sized(8, 3))
    step(state, next(batches))
    counted = LiveMemory() if not job.full else nullcontext()
    if isinstance(counted, LiveMemory):
        counted.add([*state.model.parameters(), *state.model.buffers()])
        counted.add(t for s in state.optimizer.state.values() for t in s.values())
    else:
        torch.cuda.reset_peak_memory_stats(job.device)
    for batch in batches:
        with counted:
            if isinstance(counted, LiveMemory):
                counted.add([batch.images])
            step(state, batch)
    synchronize(job.device)
    peak = counted.peak if isinstance(counted, LiveMemory) else torch.cuda.max_memory_allocated(job.device)
    low, high = NEAR
    yield measured("peak predicted by gpu_memory.py", [predicted / 2**30], "GiB")
    met = low * predicted <= peak <= high * predicted
    yield demand("peak allocated in training", met, peak / 2**30, "GiB", f"{low} to {high} of the prediction is near")
    if job.full:
        yield measured("peak reserved in training", [torch.cuda.max_memory_reserved(job.device) / 2**30], "GiB")
    yield _contenders(job)


def _config(job: Job) -> Config:
    return replace(config_of(job, "simclr", True), backend="native")


def _pipeline(job: Job) -> tuple[Pipeline, str]:
    records, note = photos(job)
    repeated = RepeatedRecords(records, _config(job).batch_size * job.sized(400, 20))
    return training_pipeline(_config(job), repeated, alone(job)), note


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def _contenders(job: Job) -> Finding:
    """Whether a benchmark's contenders have the GPU to themselves while they are measured."""
    name = "memory that other contenders hold while one is measured"
    if not job.full:
        return Finding(name, note="needs a GPU")
    one, two = (
        max(
            turn.images
            for turns in interleave(dict.fromkeys(names, _contender), job.device, 1, alone=True)
            for turn in turns.values()
        )
        for names in (("first",), ("first", "second"))
    )
    return demand(name, two - one < CONTENDER_BYTES / 2, (two - one) / 2**30, "GiB")


def _contender(device: torch.device) -> Workload:
    """Holds memory, and gives in place of a number of images the bytes that others hold."""
    mine = torch.ones(CONTENDER_BYTES, dtype=torch.uint8, device=device)

    def load(_: int) -> Iterator[int]:
        free, total = torch.cuda.mem_get_info(device)
        yield max(1, total - free - len(mine))

    return load
