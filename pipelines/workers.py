"""Worker processes that end with the process that started them, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

SPAWN = multiprocessing.get_context("spawn")  # the caller may have threads, which a fork would freeze


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # without this, the workers of a killed process stay and write beside its successor


def _start(initialize: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; it is for the parent to act on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initialize:
        initialize(*arguments)


def worker_pool(workers: int, initialize: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Pool of `workers` processes; each calls `initialize(*arguments)` first, where it is given."""
    return ProcessPoolExecutor(workers, SPAWN, _start, (initialize, arguments))
