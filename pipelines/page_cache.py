"""What the system's cache of files is to keep until the next epoch, where not all images fit into memory.

By itself it forgets what was used longest ago: in a random order, nearly everything before it is used again. Of images
that are each used once an epoch no cache can spare more reads than it holds. This one spares as many: the images at the
beginning of the records stay, and all others are given up as soon as they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.records.protocol import Records

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_SHARE = 0.8  # of the memory that is free, for images
_WINDOWS = 4  # that are there at a time, at most: two are used, one comes in, and one is the first of the next epoch


class PageCache:
    """The cache while all of `records` are used again and again, shuffled within a `window` or as a whole."""

    def __init__(self, records: Records, window: int | None) -> None:
        free, ends = free_memory(), np.cumsum(records.length)
        self._records, self._kept = records, len(records)
        if free is not None and ends[-1] > _SHARE * free:
            of_windows = _WINDOWS * (window or 0) * ends[-1] / len(records)
            self._kept = int(np.searchsorted(ends, _SHARE * free - of_windows, side="right"))

    def used(self, positions: NDArray[np.int64]) -> None:
        """Give up those of these images that do not stay."""
        self._records.wont_read(positions[positions >= self._kept])


def free_memory() -> int | None:
    """Bytes that this process may fill, those of cached files included; None where the system does not say."""
    found = [free for free in (_of_machine(), *_of_cgroups()) if free is not None]
    return max(0, min(found)) if found else None


def _of_machine() -> int | None:
    told = _numbers(PROC / "meminfo").get("MemAvailable:")
    return None if told is None else told * 1024


def _of_cgroups() -> Iterator[int | None]:
    """What the limits of this process's groups leave, of both versions of cgroups, and of those that these lie in."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        for folder in [CGROUPS / "memory", CGROUPS] if kinds == "memory" else [CGROUPS] if not kinds else []:
            group = folder / path.lstrip("/")
            for one in (group, *group.parents):
                if one.is_relative_to(folder):
                    yield _left(one, "memory.max", "memory.current", "file")
                    yield _left(one, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most, used = ((group / name).read_text().strip() for name in (limit, usage))
    except OSError:
        return None
    return None if most == "max" else int(most) - int(used) + _numbers(group / "memory.stat").get(cache, 0)


def _numbers(path: Path) -> dict[str, int]:
    """The second word of each line, by the first; empty where the file cannot be read."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {name: int(number) for name, number, *_ in words}
