"""Ask the system for bytes of mapped files before they are read.

A page that is not in memory yet blocks the thread that touches it, so cold records are read by as many requests at a
time as there are threads. Requested in advance, the pages of whole batches are read concurrently.
"""

from __future__ import annotations

import mmap


def read_ahead(content: mmap.mmap, start: int, length: int) -> None:
    """Begin to load `length` bytes from `start` on, without waiting; nothing where they are there already."""
    if start < len(content) and hasattr(mmap, "MADV_WILLNEED"):
        page = start - start % mmap.PAGESIZE
        content.madvise(mmap.MADV_WILLNEED, page, start + length - page)
