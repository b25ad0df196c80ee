"""Records: what lies on disk, behind one small protocol. `open_records` finds the format by what a path holds."""

from __future__ import annotations

from pathlib import Path

from equimod.pipelines.records.archive import is_pattern
from equimod.pipelines.records.at_url import open_at_url
from equimod.pipelines.records.beton import SUFFIX, BetonRecords
from equimod.pipelines.records.folder import LISTS, FolderRecords, Labels
from equimod.pipelines.records.protocol import Records, RecordsError
from equimod.pipelines.records.remote import url_of
from equimod.pipelines.records.tar import MANIFEST, PROGRESS, TarRecords

__all__ = ["Records", "RecordsError", "open_converted", "open_records"]


def open_records(path: Path, labels: Labels = "auto") -> Records:
    """Open a .beton file, a folder of records, or images in a folder, with labels as `Labels` says, or in a list.
    Records may lie at a URL, see `url_of`.

    Raises RecordsError where it is none of these, unreadable, of another format version or not completely converted.
    """
    return open_converted(path) or FolderRecords(path, labels)


def open_converted(path: Path) -> Records | None:
    """The records at `path`; None where it may be a folder or a list of images. Raises RecordsError for all else."""
    if url := url_of(path):
        return open_at_url(url)
    if path.suffix == SUFFIX:
        return BetonRecords(path)
    try:
        if (path / MANIFEST).is_file():
            return TarRecords(path)
        if (path / PROGRESS).is_dir() or any(path.glob("shard-*.tar")):
            raise RecordsError(
                f"{path} is an interrupted conversion or an incomplete copy; run the converter again to finish it"
            )
    except PermissionError as error:
        raise RecordsError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if is_pattern(path) or (path.is_file() and path.suffix not in LISTS) or any(path.glob("*.parquet")):
        raise RecordsError(
            f"{path} is no records, folder or list of images; where it is an archive, parquet or stands for shards, "
            f"run equimod convert {path} RECORDS first"
        )
    return None
