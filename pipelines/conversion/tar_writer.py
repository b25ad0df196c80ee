"""Tar shards with DALI's index, the table of their samples and the manifest, as `records.tar` reads them."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.codec import PNG_START
from equimod.pipelines.conversion.check import CheckedImage
from equimod.pipelines.conversion.source import Item
from equimod.pipelines.durable import durable_file
from equimod.pipelines.records.manifest import Manifest, Shard
from equimod.pipelines.records.names import pack_names
from equimod.pipelines.records.tar import CLASSES, FORM, MANIFEST, NAMES, SAMPLES, shard_name
from equimod.pipelines.stored import Digests, FileDigest


class ShardWriter:
    """Members of one shard into an open file; the same samples give the same bytes."""

    def __init__(self, file: BinaryIO, number: int) -> None:
        self.rows: list[tuple[int, ...]] = []  # fields of SAMPLE
        self._number = number
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._lines: list[str] = []

    def _member(self, name: str, content: bytes) -> tuple[int, str]:
        """Append a file; offset of its content and its entry for the index."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        offset = self._file.tell() + tarfile.BLOCKSIZE
        self._tar.addfile(header, io.BytesIO(content))
        return offset, f"{name.partition('.')[2]} {offset} {len(content)} {name}"

    def add(self, item: Item, image: CheckedImage, remark: int) -> None:
        """Append a sample: the image, and the number of what is to be said of it."""
        index, label, content, size = item.index, item.label, image.content, image.size
        fields = {"index": index, "label": label, "width": size[0], "height": size[1], "name": item.name}
        kind = "png" if content.startswith(PNG_START) else "jpg"
        offset, entry = self._member(f"{index:09d}.{kind}", content)
        _, cls = self._member(f"{index:09d}.cls", str(label).encode())
        _, meta = self._member(f"{index:09d}.json", json.dumps(fields).encode())
        self._lines.append(f"{entry} {cls} {meta}\n")
        checksum = zlib.crc32(content)
        row = (self._number, offset, len(content), checksum, index, label, *size, *image.stored_size, remark)
        self.rows.append(row)

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()

    def dali_index(self) -> str:
        return "".join([f"v1.2 {len(self._lines)}\n", *self._lines])


@contextmanager
def write_shard(folder: Path, number: int) -> Iterator[ShardWriter]:
    """Shard `number` of `folder` and its index, there when the block ends without an exception; none if it is empty."""
    path = folder / shard_name(number)
    with durable_file(path) as file:
        writer = ShardWriter(file, number)
        yield writer
        writer.close()
    if not writer.rows:
        path.unlink()  # DALI rejects an index without samples
        return
    with durable_file(path.with_suffix(".idx")) as file:
        file.write(writer.dali_index().encode())


def describe_shard(folder: Path, number: int, samples: int) -> Shard:
    """The manifest's entry of a shard that is in place."""
    path = folder / shard_name(number)
    shard, index = FileDigest.of(path), FileDigest.of(path.with_suffix(".idx"))
    return Shard(path.name, samples, shard.length, shard.sha256, index.sha256)


def write_table(
    folder: Path, classes: list[str], table: NDArray[np.void], names: Iterable[str]
) -> dict[str, FileDigest]:
    """Write samples.npy, an element of type SAMPLE a sample, their names and classes.json, durably. Their digests."""
    with durable_file(folder / SAMPLES) as file:
        np.save(file, table, allow_pickle=False)
    with durable_file(folder / NAMES) as file:
        file.write(pack_names(names))
    with durable_file(folder / CLASSES) as file:
        file.write(json.dumps(classes).encode())
    return Digests.of(folder, (CLASSES, NAMES, SAMPLES)).files


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json into `folder`, durably."""
    with durable_file(folder / MANIFEST) as file:
        file.write(manifest.to_json(FORM))
