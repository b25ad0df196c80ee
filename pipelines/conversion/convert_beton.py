"""From any source to a .beton file.

First to tar shards in a hidden folder beside it, in parallel; then from these to the file, in one pass. Both go on
where they were interrupted. Tar records that are to be handed through as they are need the second step alone.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.conversion.convert import (
    Conversion,
    convert_locked,
    fits,
    lock_output,
    other_records,
    refuse_inside,
    shard_tasks,
)
from equimod.pipelines.conversion.records_source import RecordsReader
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.conversion.source import Source
from equimod.pipelines.conversion.unfinished_beton import parts_folder
from equimod.pipelines.records.beton import SUFFIX, BetonRecords
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.records.tar import MANIFEST, TarRecords

SHARD_SIZE = 1000  # of the shards in between


def convert_to_beton(source: Source, output: Path, settings: ConversionSettings) -> Conversion:
    """Convert `source` into the file `output`.

    Raises RecordsError where source or output is unsuitable or the disk is full, DamagedImagesError under "fail".
    """
    if output.suffix != SUFFIX:
        raise RecordsError(f"{output} does not end in {SUFFIX}; give a file name that does")
    for path in source.paths:
        refuse_inside(path, output)
    raw = settings.raw or bool(source.origin and source.origin.raw)  # pixels stay pixels
    shrink = replace(settings.shrink, quality=None) if raw and settings.shrink else settings.shrink
    settings = replace(settings, raw=raw, shrink=shrink, shard_size=SHARD_SIZE)
    parts = parts_folder(output)
    if output.exists() and not settings.overwrite:
        return _complete(source, output, settings)
    with lock_output(parts, output):
        if not settings.shrink and isinstance(source.reader, RecordsReader) and (source.path / MANIFEST).is_file():
            shards, written = source.path, 0
        else:
            shards, written = parts, convert_locked(source, parts, settings).written
        records = TarRecords(shards)
        manifest = replace(records.manifest, raw=raw, shards=(), shard_size=None, files={})
        write_beton(records, output, manifest, raw=raw, workers=settings.workers)
        shutil.rmtree(parts, ignore_errors=True)
    finished = BetonRecords(output).trailer
    assert finished is not None
    return Conversion(finished.manifest, written + 1)


def _complete(source: Source, output: Path, settings: ConversionSettings) -> Conversion:
    """The finished conversion in `output`. Raises RecordsError where it is not what this one would give."""
    trailer = BetonRecords(output).trailer
    tasks = shard_tasks(source, output, settings)
    if trailer is None or not fits(trailer.manifest, source, tasks, settings, settings.raw):
        raise other_records(output)
    shutil.rmtree(parts_folder(output), ignore_errors=True)  # where the run that wrote it was interrupted here
    return Conversion(trailer.manifest, written=0)
