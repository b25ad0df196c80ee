"""A native pipeline keeps no memory over epochs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings

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
    convert(image_tree, output, ConversionSettings(workers=1))
    return output


def _growth(records: Path, *leak: str) -> int:
    """Bytes by which resident memory grew from the end of the warm-up to the last epoch."""
    command = [sys.executable, "-c", EPOCHS_UNDER_MEASURE, str(records), *leak]
    environment = {**os.environ, **GIVE_BACK}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    resident = [int(line) for line in output.split()]
    return resident[-1] - max(resident[:WARM_UP_EPOCHS])


@pytest.mark.ci
def test_resident_memory_does_not_grow_over_epochs(records: Path) -> None:
    assert _growth(records) < SLACK


@pytest.mark.ci
def test_the_memory_test_sees_a_leak(records: Path) -> None:
    assert _growth(records, "leak") > SLACK
