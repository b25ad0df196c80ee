"""A real run: SimCLR without and with EquiMod on CIFAR-10, as many epochs as there is time for, and its scores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from equimod.benchmarks.gpu_check.clock import synchronize
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured
from equimod.benchmarks.gpu_check.workload import alone, cifar10
from equimod.benchmarks.rehearse import step
from equimod.pipelines.images import open_images
from equimod.pipelines.shapes import draw_dataset
from equimod.train.config import parse
from equimod.train.evaluate import main as evaluate
from equimod.train.evaluation.scores import read_scores
from equimod.train.main import main as train
from equimod.train.run import build_train_state, training_pipeline

EVALUATION_SECONDS = 100.0  # of both runs together
MOST_EPOCHS = 100
EQUIMOD_COSTS = 1.5  # times the run without: a third image a sample


def run(job: Job) -> Iterator[Finding]:
    """Both runs have the same number of epochs, found by a few timed steps."""
    data = cifar10(job)
    options = ["--method", "simclr", "--backend", "native", "--system.device", job.device.type]
    if data is not None:
        name, (images, test_images) = "cifar10", data
    else:
        name, images, test_images = "shapes", job.scratch / "train", job.scratch / "test"
        draw_dataset(images, samples=job.sized(10_000, 200), seed=0, workers=job.sized(8, 1))
        draw_dataset(test_images, samples=job.sized(2_000, 50), seed=0, split="test", workers=job.sized(8, 1))
    options += ["--dataset", name, "--data", str(images), "--val", str(test_images)]
    options += job.sized([], ["--batch-size", "50", "--encoder.width", "8", "--encoder.arch", "resnet10"])
    epochs = _epochs(job, options)
    options += ["--epochs", str(epochs), "--optim.warmup-epochs", f"{min(10, epochs / 10):g}"]
    for name, more in (("SimCLR", []), ("SimCLR + EquiMod", ["--equimod"])):
        yield from _run(job, name, [*options, *more], epochs)


def _epochs(job: Job, options: Sequence[str]) -> int:
    """As many as both runs have time for, by the time of a few steps with EquiMod."""
    config = parse([*options, "--equimod", "--output", str(job.scratch / "timed")]).on_device(job.device.type)
    assert config.data is not None
    records, here = open_images(config.data), alone(job)
    pipeline = training_pipeline(config, records, here)
    state = build_train_state(config, records, len(pipeline), here)
    steps = min(len(pipeline), job.sized(25, 2))
    began = time.perf_counter()
    for number, batch in enumerate(islice(pipeline.epoch(0), steps)):
        step(state, batch)
        if number < steps // 2:  # the first ones start everything
            synchronize(job.device)
            began = time.perf_counter()
    synchronize(job.device)
    epoch = (time.perf_counter() - began) / (steps - steps // 2) * len(pipeline)
    affordable = (job.seconds_left() - EVALUATION_SECONDS) / (epoch * (1 + 1 / EQUIMOD_COSTS))
    return max(1, min(int(affordable), job.sized(MOST_EPOCHS, 1)))


def _run(job: Job, name: str, options: list[str], epochs: int) -> Iterator[Finding]:
    folder = job.scratch / name.replace(" ", "")
    began = time.perf_counter()
    code = train([*options, "--output", str(folder)])
    yield _ended(f"{name}: {epochs} epochs of training", code, time.perf_counter() - began)
    if code:
        return
    began = time.perf_counter()
    code = evaluate([str(folder), "--linear-cached", "--knn", *["--equivariance"] * ("--equimod" in options)])
    yield _ended(f"{name}: evaluation", code, time.perf_counter() - began)
    if code:
        return
    scores = read_scores(folder)
    for key, title in (("linear_cached_top1", "linear top-1 on cached features"), ("knn_top1", "kNN top-1")):
        yield measured(f"{name}: {title}", [scores[key]], "%")


def _ended(name: str, code: int, seconds: float) -> Finding:
    return demand(f"{name} ends well", code == 0, seconds, "s", f"exit code {code}" if code else "")
