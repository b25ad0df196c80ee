"""Pools of worker processes that end whenever the process that started them ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

SPAWN = multiprocessing.get_context("spawn")  # the caller may have threads, which a fork would freeze


def end_with_parent() -> None:
    """Have this process end as soon as the one that started it has ended, whatever ended that."""
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # without this, the workers of a killed process stay and write beside its successor


def _start(initialize: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if initialize:
        initialize(*arguments)


def worker_pool(workers: int, initialize: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Pool of `workers` running processes; each calls `initialize(*arguments)` first, where it is given.

    They do not hear Ctrl-C, which reaches the whole group of processes and is for the parent to act on.
    """
    pool = ProcessPoolExecutor(workers, SPAWN, _start, (initialize, arguments))
    # A process inherits what its parent blocks, so there is no moment at its start when it would hear it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(workers):
            pool.submit(_nothing)  # each submit starts a process as long as none is idle
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def _nothing() -> None:
    pass
