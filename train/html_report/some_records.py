"""Some samples of records, spaced evenly over all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.protocol import Records, StoredImage


class SomeRecords:
    """Up to `most` samples of `records`. Where they are sorted by class, each class has its share."""

    def __init__(self, records: Records, most: int) -> None:
        count = min(most, len(records))
        self._records, self._positions = records, np.arange(count) * len(records) // count
        self.classes, self.raw = records.classes, records.raw
        self.label, self.index = records.label[self._positions], records.index[self._positions]
        self.size, self.stored_size = records.size[self._positions], records.stored_size[self._positions]
        self.length, self.checksum = records.length[self._positions], records.checksum[self._positions]
        self.changed = records.changed[self._positions]
        self.manifest, self.form = records.manifest, records.form

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, position: int) -> StoredImage:
        """The image as it is stored. Raises RecordsError."""
        return self._records.read(int(self._positions[position]))

    def will_read(self, positions: NDArray[np.int64]) -> None:
        """See Records."""
        self._records.will_read(self._positions[positions])

    def source(self, position: int) -> str:
        """The sample's path in the source."""
        return self._records.source(int(self._positions[position]))

    def name(self, position: int) -> str:
        """Where this sample comes from and lies, for error messages."""
        return self._records.name(int(self._positions[position]))
