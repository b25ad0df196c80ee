"""The images whose representations are nearest to that of one of them, by cosine similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equimod.models.settings import ConfigError
from equimod.train.embedding.files import Embeddings

EXACT = 200_000
"""Images up to which all are compared; beyond, an index of faiss says which."""
_PROBES = 32  # cells of faiss's index that are looked into


@dataclass(frozen=True)
class Neighbours:
    """The rows nearest to each of Q queries, nearest first, without the query itself."""

    query: NDArray[np.int64]  # (Q,) rows
    row: NDArray[np.int64]  # (Q,K)
    similarity: NDArray[np.float32]  # (Q,K) cosine


def find(embeddings: Embeddings, queries: Sequence[str], count: int) -> Neighbours:
    """The `count` nearest images of each query: the path of an image in the source, or the end of it, or its index.

    Raises ConfigError where there is no such image, or several, and where faiss is needed and missing.
    """
    rows = np.array([_row(embeddings, query) for query in queries])
    count = min(count, len(embeddings) - 1)
    if count < 1:
        raise ConfigError("there is one image alone, which has no neighbours; give more images")
    h = embeddings.h / np.maximum(np.linalg.norm(embeddings.h, axis=1, keepdims=True), 1e-12)
    found = _exact(h, rows, count + 1) if len(h) <= EXACT else _by_faiss(h, rows, count + 1)
    others = np.array(
        [[row for row in of_query if row != own][:count] for own, of_query in zip(rows, found, strict=True)]
    )
    similarity = np.einsum("qkf,qf->qk", h[others], h[rows])
    return Neighbours(rows, others, similarity)


def _exact(h: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.argsort(-(h[rows] @ h.T), axis=1, kind="stable")[:, :count]


def _by_faiss(h: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"neighbours among {len(h):,} images need faiss ({error}): pip install 'equimod[neighbours]'"
        ) from error
    cells = int(4 * len(h) ** 0.5)
    index: Any = faiss.index_factory(h.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(h)
    index.add(h)
    index.nprobe = min(_PROBES, cells)
    found: NDArray[np.int64] = index.search(h[rows], count)[1]
    return found if found.min() >= 0 else _exact(h, rows, count)  # where the cells hold too few


def _row(embeddings: Embeddings, query: str) -> int:
    """The row of an image, by its index, its path or the end of its path."""
    if query.isdecimal():
        found = np.flatnonzero(embeddings.index == int(query))
        if not len(found):
            raise ConfigError(f"query {query}: no image has this index; give one up to {embeddings.index[-1]}")
        return int(found[0])
    whole = np.flatnonzero(embeddings.path == query)
    ends = whole if len(whole) else np.flatnonzero(np.char.endswith(embeddings.path, f"/{query}"))
    if len(ends) == 1:
        return int(ends[0])
    if len(ends):
        shown = ", ".join(embeddings.path[ends[:3]])
        raise ConfigError(f"query {query}: {len(ends)} images end like this ({shown}, ...); give more of the path")
    raise ConfigError(f"query {query}: no image has this path; the first one is {embeddings.path[0]}")
