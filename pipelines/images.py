"""Opening images to train on or to evaluate on: records, or files where they lie, and several of these together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.conversion import Source, open_source
from equimod.pipelines.conversion.archive_records import ArchiveRecords, read_headers
from equimod.pipelines.conversion.parquet_source import SUFFIX as PARQUET
from equimod.pipelines.records import open_converted, open_records
from equimod.pipelines.records.archive import is_compressed, is_pattern
from equimod.pipelines.records.beton import SUFFIX as BETON
from equimod.pipelines.records.folder import LISTS, SURVEYED, Labels, survey_files
from equimod.pipelines.records.joined import JoinedRecords
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.records.remote import url_of


def open_images(paths: Path | Sequence[Path], labels: Labels = "auto") -> Records:
    """Open one or several of: records; images in a folder or a list; tar and zip archives of images, and webdataset
    shards by a pattern, that are not compressed. Of several, the samples of the first come first.

    Raises RecordsError where one is none of these or cannot be read, and for parquet and compressed archives, which
    have to be converted.
    """
    several = [paths] if isinstance(paths, Path) else list(paths)
    opened = [_open_one(path, labels) for path in several]
    return opened[0] if len(opened) == 1 else JoinedRecords(opened, [str(path) for path in several], labels)


def survey(paths: Path | Sequence[Path], labels: Labels = "auto") -> tuple[int, NDArray[np.int32]]:
    """The number of images of what `open_images` opens, and width and height (M,2) of at least some of them.

    Of files, SURVEYED are opened. Raises RecordsError as `open_images`.
    """
    found = [_survey_one(path, labels) for path in ([paths] if isinstance(paths, Path) else paths)]
    return sum(count for count, _ in found), np.concatenate([sizes for _, sizes in found])


def _open_one(path: Path, labels: Labels) -> Records:
    source = _archive(path, labels)
    return ArchiveRecords(source) if source else open_records(path, labels)


def _survey_one(path: Path, labels: Labels) -> tuple[int, NDArray[np.int32]]:
    if source := _archive(path, labels):
        count = len(source.items)
        return count, read_headers(source, range(0, count, -(-count // SURVEYED)))[:, :2].astype(np.int32)
    if records := open_converted(path):
        return len(records), records.size
    return survey_files(path, labels)


def _archive(path: Path, labels: Labels) -> Source | None:
    """The archive at `path`, or the shards that it stands for; None where it is no archive that is read in place."""
    if url_of(path):
        return None
    in_place = is_pattern(path) or (path.is_file() and not is_compressed(path))
    return open_source(path, labels=labels) if in_place and path.suffix not in (*LISTS, BETON, PARQUET) else None
