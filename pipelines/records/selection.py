"""Some of the samples of records, in any order, as records of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.protocol import Records, StoredImage


class SelectedRecords:
    """The samples of `records` at `positions`, in that order. Each keeps its index, on which what is drawn depends."""

    def __init__(self, records: Records, positions: NDArray[np.int64]) -> None:
        self._records, self._position = records, positions
        self.classes = records.classes
        self.index, self.label = records.index[positions], records.label[positions]
        self.size, self.stored_size = records.size[positions], records.stored_size[positions]
        self.length = records.length[positions]
        self.checksum, self.changed = records.checksum[positions], records.changed[positions]
        self.remark = records.remark[positions]
        self.raw, self.manifest, self.form = records.raw, records.manifest, records.form

    def __len__(self) -> int:
        return len(self._position)

    def read(self, position: int) -> StoredImage:
        return self._records.read(int(self._position[position]))

    def will_read(self, positions: NDArray[np.int64]) -> None:
        self._records.will_read(self._position[positions])

    def wont_read(self, positions: NDArray[np.int64]) -> None:
        self._records.wont_read(self._position[positions])

    def source(self, position: int) -> str:
        return self._records.source(int(self._position[position]))

    def name(self, position: int) -> str:
        return self._records.name(int(self._position[position]))


def spread_over(records: Records, count: int) -> SelectedRecords:
    """At most `count` samples of `records`, spread evenly over them."""
    count = min(count, len(records))
    return SelectedRecords(records, np.arange(count) * len(records) // count)
