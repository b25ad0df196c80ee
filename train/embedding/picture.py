"""A picture of queries and their nearest images, a row a query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from equimod.models.settings import ConfigError
from equimod.pipelines.decode import decode_sample
from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import one_line
from equimod.pipelines.records.protocol import Records
from equimod.train.embedding.files import Embeddings
from equimod.train.embedding.neighbours import Neighbours

_INCHES = 1.5  # of an image
_LETTERS = 20  # of a name under it


def draw_neighbours(found: Neighbours, embeddings: Embeddings, records: Records, path: Path) -> None:
    """Draw every query and its neighbours with names and similarities, as PNG, durably.

    Raises ConfigError where `records` are not the images that were embedded.
    """
    if len(records) != len(embeddings) or not np.array_equal(records.index, embeddings.index):
        raise ConfigError(
            f"{len(embeddings):,} images were embedded, and these are {len(records):,} others; give --images the same"
        )
    queries, count = found.row.shape
    figure = Figure(figsize=(_INCHES * (1 + count), (_INCHES + 0.45) * queries), layout="constrained")
    for number, line in enumerate(figure.subplots(queries, 1 + count, squeeze=False)):
        rows = [int(found.query[number]), *map(int, found.row[number])]
        titles = ["query", *(f"{value:.3f}" for value in found.similarity[number])]
        for axes, row, title in zip(line, rows, titles, strict=True):
            axes.imshow(decode_sample(records, row))
            axes.set_title(title, fontsize=8, pad=3)
            axes.set_xlabel(image_name(embeddings, records, row), fontsize=7, parse_math=False)
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_visible(title == "query")
    with durable_file(path) as handle:
        figure.savefig(handle, format="png", dpi=150)


def image_name(embeddings: Embeddings, records: Records, row: int) -> str:
    """Its class, or without one the end of its path."""
    label = int(records.label[row])
    name = one_line(records.classes[label] if label >= 0 else embeddings.path[row])
    return name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"
