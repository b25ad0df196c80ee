"""Representations in one file for other programs, .npz or .parquet, written block by block."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from equimod.models.settings import ConfigError
from equimod.pipelines.durable import durable_file
from equimod.pipelines.records.protocol import Records
from equimod.train.embedding.blocks import Blocks, EmbeddingError

NPZ, PARQUET = ".npz", ".parquet"
_SOURCE = b"equimod.source"  # of the schema's metadata


@dataclass(frozen=True)
class Embeddings:
    """The representations of a data set, a row an image, in the order of the source."""

    h: NDArray[np.float32]  # (N,F)
    path: NDArray[np.str_]  # (N,) in the source
    index: NDArray[np.int64]  # (N,) position in the source
    source: Path  # the data set, as it was given

    def __len__(self) -> int:
        return len(self.h)


def require_form(path: Path) -> None:
    """Raise ConfigError where the name of a file says none of the forms, or the package for it is missing."""
    if path.suffix not in (NPZ, PARQUET):
        raise ConfigError(f"{path} says no form; give a name that ends in {NPZ} or {PARQUET}")
    if path.suffix == PARQUET:
        try:
            import pyarrow.parquet  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError(f"{path} needs pyarrow ({error}): pip install 'equimod[parquet]'") from error


def write_embeddings(path: Path, blocks: Blocks, records: Records, source: Path) -> None:
    """Write the blocks with the paths, indices and classes of their images, at once.

    Raises EmbeddingError where a block is damaged, OSError where the disk is full.
    """
    write = {NPZ: _write_npz, PARQUET: _write_parquet}[path.suffix]
    with durable_file(path) as out:
        write(out, blocks, records, source)


def read_embeddings(path: Path) -> Embeddings:
    """A file of `write_embeddings`. Raises ConfigError where it is not there, EmbeddingError where it is another."""
    require_form(path)
    if not path.is_file():
        raise ConfigError(f"{path} is not there; make it with: equimod embed RUN DATA {path}")
    try:
        found = {NPZ: _read_npz, PARQUET: _read_parquet}[path.suffix](path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:  # pyarrow's are ValueErrors
        reason = " ".join(str(error).split())[:200]
        raise EmbeddingError(f"{path} is no file of equimod embed, or it is damaged ({reason})") from error
    if not (found.h.ndim == 2 and len(found.h) == len(found.path) == len(found.index) > 0):
        raise EmbeddingError(f"{path} is no file of equimod embed: its columns are not of one length")
    return found


def _pieces(blocks: Blocks) -> Iterator[tuple[range, NDArray[np.float32]]]:
    """Each block with the positions of its images."""
    start = 0
    for block in blocks:
        h = block.numpy()
        yield range(start, start + len(h)), h
        start += len(h)


def _write_npz(out: BinaryIO, blocks: Blocks, records: Records, source: Path) -> None:
    images, features = blocks.plan.images, blocks.plan.features
    text = np.dtype(f"<U{max(len(_path(records, position)) for position in range(images))}")
    paths = (np.array([_path(records, position)], dtype=text) for position in range(images))
    columns: dict[str, tuple[np.dtype[Any], tuple[int, ...], Iterable[NDArray[Any]]]] = {
        "features": (np.dtype("<f4"), (images, features), (h for _, h in _pieces(blocks))),
        "path": (text, (images,), paths),
    }
    small = {"index": records.index, "label": records.label, "classes": np.array(records.classes, dtype=np.str_)}
    for name, column in {**small, "source": np.array(str(source))}.items():
        columns[name] = (column.dtype, column.shape, [column])
    with zipfile.ZipFile(out, "w") as archive:
        for name, (dtype, shape, pieces) in columns.items():
            # Not by its name, with which goes the time.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(member, header)
                for piece in pieces:
                    member.write(np.ascontiguousarray(piece).tobytes())


def _path(records: Records, position: int) -> str:
    """The path of an image in its source, with what is not UTF-8 in it escaped."""
    return records.source(position).encode(errors="backslashreplace").decode()


def _read_npz(path: Path) -> Embeddings:
    with np.load(path) as found:
        return Embeddings(found["features"], found["path"], found["index"], Path(str(found["source"])))


def _write_parquet(out: BinaryIO, blocks: Blocks, records: Records, source: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "path": pa.string(),
            "index": pa.int64(),
            "label": pa.int64(),
            "class": pa.string(),
            "features": pa.list_(pa.float32(), blocks.plan.features),
        },
        metadata={_SOURCE: str(source).encode(errors="surrogateescape")},
    )
    with pq.ParquetWriter(out, schema) as writer:
        for positions, h in _pieces(blocks):
            label = records.label[positions.start : positions.stop]
            columns = [
                pa.array([_path(records, position) for position in positions]),
                pa.array(records.index[positions.start : positions.stop]),
                pa.array(label),
                pa.array([records.classes[number] if number >= 0 else None for number in label], pa.string()),
                pa.FixedSizeListArray.from_arrays(h.reshape(-1), h.shape[1]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _read_parquet(path: Path) -> Embeddings:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    source = (table.schema.metadata or {})[_SOURCE].decode(errors="surrogateescape")
    column = table["features"].combine_chunks()
    h = column.values.to_numpy().reshape(len(table), -1)
    return Embeddings(h, np.array(table["path"].to_pylist(), dtype=np.str_), table["index"].to_numpy(), Path(source))
