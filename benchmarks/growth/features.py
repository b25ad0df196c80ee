"""What evaluation takes on features that are kept on the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from equimod.benchmarks.growth.section import Section, peak_bytes, resident_bytes, sent_by
from equimod.pipelines.policy import POLICIES
from equimod.train.embedding.blocks import BATCHES, Blocks, Plan
from equimod.train.evaluation.features import BATCH_SIZE, Features
from equimod.train.evaluation.knn import KnnSettings, votes
from equimod.train.evaluation.linear_probe import ProbeSettings, fit
from equimod.train.evaluation.table import Table

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class KeptFeatures(Section):
    """Load drawn features, find neighbours, train a classifier on them."""

    images: int = 1_281_167
    """Training images."""
    features: int = 512
    """Features of an image."""
    classes: int = 1000
    """Classes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What they are kept in."""
    queries: int = 1024
    """Images whose neighbours are looked for."""
    steps: int = 1000
    """Steps of the classifier."""

    def measure(self) -> dict[str, Any]:
        """What each part took."""
        found = next(sent_by(_evaluate, self, self.blocks()))
        return {"benchmark": "features", "settings": self.options(), **found}

    def blocks(self) -> Blocks:
        """The features, made where they are not there."""
        form = (self.images, self.features, self.dtype, BATCH_SIZE, BATCHES)
        plan = Plan("drawn", "", POLICIES["simclr_cifar10"].x, self.dtype, "", "", "", *form)
        blocks = Blocks(self.folder / f"features-{'-'.join(map(str, form[:3]))}", plan)
        blocks.folder.mkdir(parents=True, exist_ok=True)
        rows = BATCH_SIZE * BATCHES
        for number in blocks.begin():
            generator = torch.Generator().manual_seed(number)
            count = min(rows, self.images - number * rows)
            blocks.write(number, torch.randn(count, self.features, generator=generator))
        return blocks

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """One row."""
        settings = result["settings"]
        cells = [
            f"{settings['images'] * settings['features'] * _BYTES[settings['dtype']] / 2**30:.2f}",
            f"{result['load_seconds']:.0f}",
            f"{result['queries_per_second']:,.0f}",
            f"{result['steps_per_second']:,.0f}",
            f"{result['peak_bytes'] / 2**30:.2f}",
        ]
        titles = ["features, GiB", "loaded in, s", "neighbours of images/s", "classifier's steps/s", "peak memory, GiB"]
        return [Table(titles, [cells])]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Section."""
        settings = result["settings"]
        return (
            f"{settings['features']} drawn features of {settings['images']:,} images in {settings['dtype']}, "
            f"{settings['classes']:,} classes; k of {KnnSettings().k}, batches of {ProbeSettings().batch_size}."
        )


def _evaluate(send: Connection, settings: KeptFeatures, blocks: Blocks) -> None:
    """Do what evaluators do, and send what it took."""
    found: dict[str, float] = {"resident_before_bytes": resident_bytes()}
    began = time.perf_counter()
    label = torch.arange(settings.images) % settings.classes
    train = Features(blocks.load(), label, tuple(map(str, range(settings.classes))))
    found["load_seconds"], began = time.perf_counter() - began, time.perf_counter()
    votes(train, train.h[: settings.queries].float(), KnnSettings())
    found["queries_per_second"] = settings.queries / (time.perf_counter() - began)
    few = ProbeSettings(epochs=1)
    steps = min(settings.steps, settings.images // few.batch_size)
    order = torch.from_numpy(np.random.default_rng(0).permutation(settings.images))

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in order[: steps * few.batch_size].split(few.batch_size):
            yield train.h[rows].float(), train.label[rows]

    began = time.perf_counter()
    fit(batches, steps, train, few)
    found["steps_per_second"] = steps / (time.perf_counter() - began)
    found["peak_bytes"] = peak_bytes()
    send.send(found)
