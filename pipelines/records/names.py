"""The names of samples in their source, apart from all else: they are asked for seldom, and take the most memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.protocol import RecordsError


def pack_names(names: Iterable[str]) -> bytes:
    """A line of JSON a name."""
    return "".join(f"{json.dumps(name)}\n" for name in names).encode()


@dataclass(frozen=True)
class Names:
    """Names as `pack_names` writes them, read at their first use."""

    place: str  # where they lie, for errors
    read: Callable[[], bytes]  # raises RecordsError

    def at(self, position: int) -> str:
        """The name of a sample. Raises RecordsError where the names are damaged."""
        content, ends = self._lines
        try:
            start = int(ends[position - 1]) + 1 if position else 0
            return str(json.loads(content[start : int(ends[position])]))
        except (ValueError, IndexError, RecursionError) as error:
            raise RecordsError(f"{self.place} holds damaged names ({error}); convert again") from error

    @cached_property
    def _lines(self) -> tuple[bytes, NDArray[np.int64]]:
        content = self.read()
        return content, np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
