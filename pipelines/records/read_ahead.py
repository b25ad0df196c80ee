"""Ask the system for bytes of mapped files before they are read.

A page that is not there yet stops the thread that touches it, so cold records come at the speed of as many reads at a
time as there are threads; asked for in advance, those of whole batches are under way at once.
"""

from __future__ import annotations

import mmap


def read_ahead(content: mmap.mmap, start: int, length: int) -> None:
    """Begin to load `length` bytes from `start` on, without waiting; nothing where they are there already."""
    if start < len(content) and hasattr(mmap, "MADV_WILLNEED"):
        page = start - start % mmap.PAGESIZE
        content.madvise(mmap.MADV_WILLNEED, page, start + length - page)
