"""Parquet files as sources, in the form that Hugging Face publishes data sets of images in.

A column holds images, each the bytes of a file and its path; another may hold labels, whose names stand in the
metadata of the schema. Samples come in the order of the files and of their rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from equimod.pipelines.conversion.check import CheckedImage, DamagedImageError, Encoding, check_image
from equimod.pipelines.conversion.labels import number_labels
from equimod.pipelines.conversion.source import Item, Source
from equimod.pipelines.progress import track
from equimod.pipelines.records.archive import changed
from equimod.pipelines.records.folder import SPLITS, Labels
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.stored import regular_descriptor

SUFFIX = ".parquet"
_NAMES_OF_LABELS = ("label", "labels")
_NO_LABEL = (None, -1)  # as in test sets


@dataclass(frozen=True)
class ParquetReader:
    """Images in parquet files; an item's place is the number of its file, its row group, its row there, and the bytes
    of the group, which stand for those of the image."""

    paths: tuple[Path, ...]
    column: str

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        file, group, row, _ = item.place
        try:
            content = _images(self.paths[file], group, self.column)[row]
        except (OSError, RecordsError) as error:
            raise DamagedImageError(str(error).partition("\n")[0]) from error
        if content is None:
            raise DamagedImageError("no bytes are stored, only a path")
        return check_image(content, encoding)

    def mark(self, item: Item) -> tuple[int, ...]:
        return item.place[3], changed(self.paths[item.place[0]])


def is_parquet(paths: Iterable[Path]) -> bool:
    """Whether paths are parquet files by their names."""
    return {path.suffix for path in paths} == {SUFFIX}


def parquet_files(path: Path) -> list[Path]:
    """A parquet file, or those of a folder. Raises RecordsError where their names say that they are several splits."""
    paths = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path] if is_parquet([path]) else []
    splits = sorted({file.name.partition("-")[0].partition(".")[0] for file in paths} & SPLITS)
    if len(splits) > 1:
        one = "train" if "train" in splits else splits[0]
        raise RecordsError(
            f"{path} holds several splits ({', '.join(splits)}); give one, such as '{path}/{one}-*{SUFFIX}'"
        )
    return paths


def parquet_source(path: Path, paths: Sequence[Path], labels: Labels = "auto") -> Source:
    """The samples in parquet files, which `path` stands for. Raises RecordsError."""
    features = _features(paths[0])
    image, label = _image_column(paths[0], features), _label_column(paths[0], features)
    columns = [f"{image}.path"] + ([label] if label and labels != "none" else [])
    names: list[str] = []
    texts: list[str | None] = []
    places: list[tuple[int, ...]] = []
    for number, file in enumerate(track(paths, len(paths), "reading labels", "files")):
        metadata = _opened(file).metadata
        for group in range(metadata.num_row_groups):
            rows = _read(file, group, columns)
            size, first = metadata.row_group(group).total_byte_size, len(names)
            places += [(number, group, row, size) for row in range(len(rows[image]))]
            stored = enumerate(rows[image], first)
            names += [f"{file.stem}/{(entry or {}).get('path') or place}" for place, entry in stored]
            values = rows.get(label) or [None] * len(rows[image])
            texts += [None if value in _NO_LABEL else str(value) for value in values]
    if not names:
        raise RecordsError(f"{path} holds no samples; give parquet files that do")
    classes, numbers = number_labels(path, texts, names)
    if classes and (of_schema := features.get(label or "", {}).get("names")):
        if len(classes) > len(of_schema):
            raise RecordsError(f"{path} has labels up to {len(classes) - 1}, and names for {len(of_schema)} of them")
        classes = list(of_schema)
    items = [Item(i, *fields) for i, fields in enumerate(zip(names, numbers, places, strict=True))]
    return Source(path, classes, items, ParquetReader(tuple(paths), image))


def _features(path: Path) -> dict[str, dict[str, Any]]:
    """What the metadata of the schema says about columns; nothing where others than Hugging Face wrote it."""
    metadata = _opened(path).schema_arrow.metadata or {}
    try:
        features: dict[str, dict[str, Any]] = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _image_column(path: Path, features: dict[str, dict[str, Any]]) -> str:
    """The first column whose values have bytes and a path."""
    from pyarrow import types

    def holds_images(column: Any) -> bool:
        return types.is_struct(column.type) and {"bytes", "path"} <= {part.name for part in column.type}

    schema = _opened(path).schema_arrow
    found = [column.name for column in schema if holds_images(column)]
    named = [name for name in found if features.get(name, {}).get("_type") == "Image"]
    if not found:
        raise RecordsError(
            f"{path} has no column of images, each with its bytes and path (it has {', '.join(schema.names)}); give a "
            "data set of images as Hugging Face stores it"
        )
    return str((named or found)[0])


def _label_column(path: Path, features: dict[str, dict[str, Any]]) -> str | None:
    """The first column of labels with names; without one, that which is called so."""
    names = _opened(path).schema_arrow.names
    named = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    return next(iter(named or [name for name in _NAMES_OF_LABELS if name in names]), None)


@lru_cache(maxsize=1)  # a row group serves the images that follow each other in a shard
def _images(path: Path, group: int, column: str) -> list[bytes | None]:
    return [None if entry is None else entry["bytes"] for entry in _read(path, group, [f"{column}.bytes"])[column]]


def _read(path: Path, group: int, columns: Sequence[str]) -> dict[str | None, list[Any]]:
    """Columns of a row group by their names. Raises RecordsError where one is missing or damaged."""
    from pyarrow import ArrowException

    try:
        rows: dict[str | None, list[Any]] = _opened(path).read_row_group(group, columns=columns).to_pydict()
    except (OSError, ArrowException) as error:
        raise RecordsError(f"{path}: row group {group} is damaged ({_first_line(error)}); download it again") from error
    if missing := [name for name in columns if name.partition(".")[0] not in rows]:
        raise RecordsError(f"{path} has no column {missing[0]}, and others that belong to it do; give those alone")
    return rows


@lru_cache(maxsize=16)  # each holds a file descriptor
def _opened(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise RecordsError("parquet files are read with pyarrow; pip install 'equimod[parquet]'") from error
    try:
        os.close(regular_descriptor(path))  # pyarrow would wait for a pipe for ever
        return parquet.ParquetFile(path, memory_map=True)
    except (OSError, ArrowException) as error:
        raise RecordsError(
            f"{path} is no parquet file, or a damaged one ({_first_line(error)}); download it again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
