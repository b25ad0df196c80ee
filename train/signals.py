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
_DEAF = 2.0  # seconds that Python has to run a handler where nobody polls
_ORPHAN = 4.0  # seconds that a rank without its launcher has for a last checkpoint
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Terminated(BaseException):
    """SIGTERM came."""


_RAISED: dict[signal.Signals, type[BaseException]] = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}
_POLLED = threading.Event()  # set inside `stop_signal`


@contextmanager
def stops_raise(told: str) -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, and one that comes later ends the process whatever it is doing.

    The process ends, saying `told`, where raising would not do: while a module is imported, since modules catch what is
    raised in the middle of them and go on in pieces; and where Python is not heard of for a while, as in a rank that
    waits for others. A rank under torchrun is sent SIGTERM when that is gone, and ends soon after.
    """
    stops = _Stops(told)
    before = {number: signal.signal(number, stops.handle) for number in _RAISED}
    receive, send = socket.socketpair()
    send.setblocking(False)
    wakeup = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=stops.watch, args=(receive,), daemon=True)
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
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM raises nothing; what it yields says whether one came."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    _POLLED.set()
    try:
        yield asked.is_set
    finally:
        _POLLED.clear()
        signal.signal(signal.SIGTERM, before)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a frame, or one that it was called from, is Python's import of a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class _Stops:
    """What signals do to this process inside `stops_raise`, and whether Python has heard of one."""

    def __init__(self, told: str) -> None:
        self._told = told
        self._heard = threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """As Python calls it, in the main thread and between two of its steps."""
        self._heard.set()
        if _is_importing(frame):
            self._end(number)
        raise _RAISED[signal.Signals(number)]

    def watch(self, signals: socket.socket) -> None:
        """Read the signals of this process, which the system writes there also while Python cannot run a handler."""
        parent, first = os.getppid(), 0.0
        try:
            while received := signals.recv(1):
                if received[0] != signal.SIGTERM:
                    continue
                now = time.monotonic()
                if first and now > first + _PASSED_ON:
                    os._exit(SIGTERM_EXIT)
                if not first and not _POLLED.is_set() and not self._heard.wait(_DEAF):
                    self._end(signal.SIGTERM)
                first = first or now
                if os.getppid() != parent:
                    signals.settimeout(_ORPHAN)
        except TimeoutError:
            os._exit(SIGTERM_EXIT)

    def _end(self, number: int) -> None:
        os.write(2, f"{self._told}\n".encode())  # sys.stderr may stand for something else just now
        os._exit(128 + number)


def _sigterm_without_parent() -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
