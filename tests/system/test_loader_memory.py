"""What a native pipeline leaves behind: no memory over epochs, no threads after an early break, no hidden errors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from equimod.pipelines.batch import Batch
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.convert import convert
from equimod.pipelines.records.folder import FolderRecords

# In a process of its own, since other tests' memory would blur the measure. Prints resident bytes after each epoch; an
# argument after the records keeps an image of each batch, a leak that the test must see.
EPOCHS_UNDER_MEASURE = """
import sys, psutil, torch
from pathlib import Path
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records

torch.set_num_threads(1)
pipeline = build_pipeline(
    open_records(Path(sys.argv[1])), POLICIES["simclr_imagenet"], batch_size=8, seed=0, workers=2
)
kept = []
for epoch in range(23):
    for batch in pipeline.epoch(epoch):
        if sys.argv[2:]:
            kept.append(batch.views[0].image[0].clone())
    print(psutil.Process().memory_info().rss)
"""
WARM_UP_EPOCHS = 3
SLACK = 2 * 2**20
"""Bytes over twenty epochs: a tenth of that is usual, the leak takes 34 MiB, one forgotten batch an epoch 276."""
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""So that glibc returns freed images to the system at once: what stays resident is what is still held."""


@pytest.fixture(scope="module")
def records(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("memory") / "records"
    convert(image_tree, output, workers=1)
    return output


def _growth(records: Path, *leak: str) -> int:
    """Bytes by which resident memory grew from the end of the warm-up to the last epoch."""
    command = [sys.executable, "-c", EPOCHS_UNDER_MEASURE, str(records), *leak]
    environment = {**os.environ, **GIVE_BACK}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    resident = [int(line) for line in output.split()]
    return resident[-1] - max(resident[:WARM_UP_EPOCHS])


def _own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("equimod")]


@pytest.fixture
def pipeline(image_tree: Path) -> Pipeline:
    return build_pipeline(open_records(image_tree), POLICIES["simclr_cifar10"], batch_size=4, seed=0, workers=2)


def test_resident_memory_does_not_grow_over_epochs(records: Path) -> None:
    assert _growth(records) < SLACK


def test_the_memory_test_sees_a_leak(records: Path) -> None:
    assert _growth(records, "leak") > SLACK


@pytest.mark.parametrize("method", ["epoch", "decoded"])
def test_early_break_leaves_no_threads(pipeline: Pipeline, method: str) -> None:
    batches: Iterator[Batch] = getattr(pipeline, method)(0)
    next(batches)
    assert _own_threads()
    del batches
    gc.collect()
    assert not _own_threads()


@pytest.mark.parametrize("method", ["epoch", "decoded"])
def test_error_of_the_backend_reaches_the_caller_and_leaves_no_threads(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    read = FolderRecords.read

    def damaged(records: FolderRecords, position: int) -> bytes:
        content = read(records, position)
        return content[:100] if position == 17 else content

    monkeypatch.setattr(FolderRecords, "read", damaged)
    batches: Iterator[Batch] = getattr(pipeline, method)(0)
    with pytest.raises(RecordsError, match=r"001\.jpg"):
        for _ in batches:
            pass
    assert not _own_threads()
