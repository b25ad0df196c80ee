"""What is known of every image beside its class: the numbers of a factors.csv, such as hue, place, size, angle."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from equimod.pipelines.records.protocol import Records
from equimod.pipelines.shapes import CLASSES, COLUMNS, FACTORS, ONE_DIRECTION
from equimod.pipelines.stored import open_regular
from equimod.train.config import ConfigError

_KEY, _LABEL = "file", "label"


def read_factors(path: Path, records: Records) -> dict[str, Tensor]:
    """The factors of the images of `records`, which lie at `path`: float64 (N,) by name, NaN where one has none.

    They stand in PATH/factors.csv, or in PATH-factors.csv beside it. Its column `file` holds the path of an image in
    the source, as records keep it. Every other column of numbers is a factor, but for `label`; an empty cell says that
    an image has no such factor. Angles of the embedded data set are known of ONE_DIRECTION alone: an outline with more
    symmetry looks the same at several. Raises ConfigError, naming the file, where there is none or it does not fit.
    """
    table = _find(path)
    header, rows = _read(table)
    missing = [name for name in map(records.source, range(len(records))) if name not in rows]
    if missing:
        raise ConfigError(f"{table} has no row for {missing[0]} ({len(missing)} images have none); add what is missing")
    of_images = [rows[records.source(position)] for position in range(len(records))]
    columns = {
        name: numbers
        for place, name in enumerate(header)
        if name not in (_KEY, _LABEL) and (numbers := _numbers([row[place] for row in of_images])) is not None
    }
    if not columns:
        raise ConfigError(f"{table} has no column of numbers beside {_KEY} and {_LABEL}; add one")
    if tuple(header) == COLUMNS:
        directed = torch.tensor([CLASSES[int(row[header.index(_LABEL)])] in ONE_DIRECTION for row in of_images])
        columns["angle"][~directed] = torch.nan
    return columns


def _find(path: Path) -> Path:
    path = path.absolute()
    places = (path / FACTORS, path.with_name(f"{path.name}-{FACTORS}"))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(f"{path} has no factors: there is neither {places[0]} nor {places[1]}; put one there")
    return found


def _read(table: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the columns, and the cells of every row by its file."""
    rows: dict[str, list[str]] = {}
    try:
        with io.TextIOWrapper(open_regular(table), "utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            if _KEY not in header:
                raise ConfigError(f"{table} has no column {_KEY!r} in its first line; add it")
            for row in lines:
                if len(row) != len(header):
                    raise ConfigError(
                        f"{table}, line {lines.line_num}: {len(row)} cells, not {len(header)}; correct it"
                    )
                name = row[header.index(_KEY)]
                if name in rows:
                    raise ConfigError(f"{table}, line {lines.line_num}: {name} has a row already; remove one of them")
                rows[name] = row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table} is not CSV in UTF-8 ({error}); correct it") from error
    return header, rows


def _numbers(cells: Sequence[str]) -> Tensor | None:
    """float64 (N,), NaN for empty cells; None where a cell holds anything but a finite number, or all are empty."""
    try:
        values = [float(cell) if cell else math.nan for cell in cells]
    except ValueError:
        return None
    finite = all(map(math.isfinite, (value for value, cell in zip(values, cells, strict=True) if cell)))
    return torch.tensor(values, dtype=torch.float64) if finite and any(cells) else None
