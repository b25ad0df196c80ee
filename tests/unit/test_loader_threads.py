"""A native pipeline that ends early, or by an error, leaves no threads behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from equimod.pipelines.batch import Batch
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.folder import FolderRecords


def _own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("equimod")]


@pytest.fixture
def pipeline(image_tree: Path) -> Pipeline:
    return build_pipeline(open_records(image_tree), POLICIES["simclr_cifar10"], batch_size=4, seed=0, workers=2)


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
