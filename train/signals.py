"""SIGTERM and lost launchers: one signal asks a process to stop, the next ends it, and no rank outlives torchrun."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGTERM_EXIT = 128 + signal.SIGTERM
_PASSED_ON = 0.5  # seconds in which launchers pass the same signal on to a rank, which may have it already
_ORPHAN = 4.0  # seconds that a rank without its launcher has for a last checkpoint
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, and one that comes later ends the process whatever it is doing.

    A rank under torchrun is sent SIGTERM when that is gone, and ends soon after.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    receive, send = socket.socketpair()
    send.setblocking(False)
    wakeup = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(receive,), daemon=True)
    watch.start()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _sigterm_without_parent()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        send.close()
        watch.join()
        receive.close()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM raises nothing; what it yields says whether one came."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _watch(signals: socket.socket) -> None:
    """Read the signals of this process, which the system writes there also while Python cannot run a handler."""
    parent, first = os.getppid(), 0.0
    try:
        while received := signals.recv(1):
            if received[0] != signal.SIGTERM:
                continue
            now = time.monotonic()
            if first and now > first + _PASSED_ON:
                os._exit(SIGTERM_EXIT)
            first = first or now
            if os.getppid() != parent:
                signals.settimeout(_ORPHAN)
    except TimeoutError:
        os._exit(SIGTERM_EXIT)


def _sigterm_without_parent() -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
