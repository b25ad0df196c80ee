"""Images that are kept in the system's cache between epochs: as many as fit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from equimod.pipelines import page_cache
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.page_cache import PageCache, free_memory
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import file_reader, open_records
from equimod.pipelines.sampler import Sampler


def test_the_first_images_stay_as_many_as_fit(monkeypatch: pytest.MonkeyPatch, image_tree: Path) -> None:
    records, forgotten = open_records(image_tree), list[int]()
    records.length = np.arange(1, 25)
    records.wont_read = lambda positions: forgotten.extend(positions.tolist())
    positions = np.random.default_rng(0).permutation(24)
    # .8 of 375 is the sum of all.
    cases = [(None, None, 24), (375, None, 24), (374, None, 23), (19, None, 5), (18, None, 4), (0, None, 0)]
    for free, window, kept in [*cases, (375, 5, 24), (374, 2, 19), (374, 99, 0)]:
        monkeypatch.setattr(page_cache, "free_memory", lambda free=free: free)
        PageCache(records, window).used(positions)
        assert forgotten == [position for position in positions if position >= kept]
        forgotten.clear()


@pytest.mark.parametrize("form", ["tar", "beton"])
def test_a_pipeline_has_the_system_forget_what_it_has_read(
    form: str, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"records.{form}"
    if form == "tar":
        convert(image_tree, path, ConversionSettings(workers=1))
    else:
        convert_to_beton(open_source(image_tree), path, ConversionSettings(workers=1))
    records, forgotten = open_records(path), list[bytes]()

    def fadvise(descriptor: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            forgotten.append(os.pread(descriptor, length, offset))

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    monkeypatch.setattr(file_reader, "_GAP", -1)
    monkeypatch.setattr(page_cache, "free_memory", lambda: 0)
    pipeline = build_pipeline(records, POLICIES["simclr_cifar10"], batch_size=8, seed=0, workers=1)
    batches = pipeline.decoded(0)
    seen = [records.read(position) for position in Sampler(24, 8, seed=0).positions(0, 0, 24)]
    for number in range(3):
        next(batches)
        assert sorted(forgotten) == sorted(seen[: 8 * number + 8])


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system tells of itself, which is empty."""
    monkeypatch.setattr(page_cache, "PROC", tmp_path / "proc")
    monkeypatch.setattr(page_cache, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def _tell(system: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(content + "\n")


def test_nothing_is_known_where_the_system_does_not_say(system: Path) -> None:
    assert free_memory() is None
    _tell(system, {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 700 kB\nHugePages_Total: 0"})
    assert free_memory() == 700 * 1024


def test_the_limit_of_a_group_counts_and_so_does_that_of_one_around_it(system: Path) -> None:
    _tell(system, {"proc/meminfo": "MemAvailable: 700 kB", "proc/self/cgroup": "1:cpu:/x\n0::/job/step"})
    inner, outer = "cgroup/job/step", "cgroup/job"
    _tell(system, {f"{inner}/memory.max": "max", f"{inner}/memory.current": "5", f"{inner}/memory.stat": "file 2"})
    assert free_memory() == 700 * 1024
    _tell(system, {f"{outer}/memory.max": "1000", f"{outer}/memory.current": "600", f"{outer}/memory.stat": "file 250"})
    assert free_memory() == 1000 - 600 + 250
    _tell(system, {"proc/self/cgroup": "9:memory:/job\n0::/"})
    v1 = {"memory.limit_in_bytes": "900", "memory.usage_in_bytes": "800", "memory.stat": "cache 1\ntotal_cache 30"}
    _tell(system, {f"cgroup/memory/job/{name}": content for name, content in v1.items()})
    assert free_memory() == 900 - 800 + 30
    _tell(system, {"cgroup/memory/job/memory.usage_in_bytes": "2000"})
    assert free_memory() == 0
