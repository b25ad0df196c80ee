"""Conversion: sources of images, and the writers that turn any of them into records.

`open_source` finds the source by what a path holds. CIFAR-10 is asked for by name (`cifar.cifar10_source`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equimod.pipelines.conversion.archive_source import archive_source, matches, pattern_source
from equimod.pipelines.conversion.joined import join
from equimod.pipelines.conversion.parquet_source import is_parquet, parquet_files, parquet_source
from equimod.pipelines.conversion.records_source import records_source
from equimod.pipelines.conversion.source import Source
from equimod.pipelines.conversion.tree import tree_source
from equimod.pipelines.records.archive import is_pattern
from equimod.pipelines.records.beton import SUFFIX
from equimod.pipelines.records.folder import LISTS, Labels
from equimod.pipelines.records.remote import url_of
from equimod.pipelines.records.tar import MANIFEST

__all__ = ["Source", "open_source", "open_sources"]


def open_sources(paths: Sequence[Path], devkit: Path | None = None, labels: Labels = "auto") -> Source:
    """The source at one path, or several as one, see `open_source`. Raises RecordsError."""
    sources = [open_source(path, devkit, labels) for path in paths]
    return sources[0] if len(sources) == 1 else join(sources, labels)


def open_source(path: Path, devkit: Path | None = None, labels: Labels = "auto") -> Source:
    """The source at `path`: records, an archive (see `archive_source`), webdataset shards or parquet files by a
    pattern, a parquet file or a folder of them, a list of images, or a folder of them, whose labels are as `Labels`
    says.

    `devkit` is the archive with the labels of ImageNet's validation images; by default it is looked for beside `path`.
    Raises RecordsError where it is none of these or cannot be read.
    """
    if path.suffix == SUFFIX or url_of(path) or (path / MANIFEST).is_file():
        return records_source(path)
    paths = matches(path) if is_pattern(path) else parquet_files(path)
    if paths and is_parquet(paths):
        return parquet_source(path, paths, labels)
    if is_pattern(path):
        return pattern_source(path, paths, labels)
    if path.is_file() and path.suffix not in LISTS:
        return archive_source(path, devkit, labels)
    return tree_source(path, labels)
