"""Records in any format as a source: their images are handed through byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from equimod.pipelines.codec import encode_png
from equimod.pipelines.conversion.check import CheckedImage, DamagedImageError, Encoding, reduced
from equimod.pipelines.conversion.source import Item, Source
from equimod.pipelines.decode import decode
from equimod.pipelines.progress import track
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import Records, RecordsError


@dataclass(frozen=True)
class RecordsReader:
    """Images of records, byte for byte; pixels become PNG files."""

    path: Path

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        records, position = _opened(self.path), item.place[0]
        try:
            image = records.read(position)
            decode(image)
        except RecordsError as error:
            raise DamagedImageError(str(error).partition("\n")[0]) from error
        content = encode_png(image) if isinstance(image, np.ndarray) else bytes(image)
        copy = reduced(content, _pair(records.size[position]), _pair(records.stored_size[position]), encoding)
        remark = int(records.remark[position])
        if not remark or records.manifest is None:
            return copy
        said = records.manifest.remarks[remark - 1]
        return replace(copy, reencoded=said.reencoded, harmless=said.harmless)

    def mark(self, item: Item) -> tuple[int, ...]:
        records, position = _opened(self.path), item.place[0]
        return int(records.length[position]), int(records.checksum[position])


_open: dict[Path, Records] = {}


def _opened(path: Path) -> Records:
    """The records at `path`, opened once a process."""
    if path not in _open:
        _open[path] = open_records(path)
    return _open[path]


def _pair(size: np.ndarray) -> tuple[int, int]:
    return int(size[0]), int(size[1])


def records_source(path: Path) -> Source:
    """Records in any format. Raises RecordsError where they cannot be opened."""
    records = open_records(path)
    columns = zip(records.index.tolist(), records.label.tolist(), strict=True)
    shown = track(columns, len(records), "reading names", "samples")
    items = [Item(i, records.source(at), label, (at, 0)) for at, (i, label) in enumerate(shown)]
    return Source(path, records.classes, items, RecordsReader(path), records.manifest)
