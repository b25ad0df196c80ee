"""A clock of `pipelines.progress` that a test sets, so that nothing has to take as long as it is told to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from equimod.pipelines import progress


class FakeClock:
    """Seconds since the test began. `a_look` seconds go by whenever somebody looks at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, a_look: float = 0.0) -> None:
        self.seconds, self._a_look = 0.0, a_look
        self.timers: list[_FakeTimer] = []
        monkeypatch.setattr(progress, "monotonic", self._monotonic)
        monkeypatch.setattr(progress, "Timer", self._timer)

    def wait(self, seconds: float) -> None:
        """Let time go by, and call what waits for it."""
        self.seconds += seconds
        for timer in [timer for timer in self.timers if timer.at <= self.seconds]:
            self.timers.remove(timer)
            timer.call()

    def _monotonic(self) -> float:
        self.seconds += self._a_look
        return self.seconds

    def _timer(self, seconds: float, call: Callable[[], None]) -> _FakeTimer:
        return _FakeTimer(self.timers, self.seconds + seconds, call)


class _FakeTimer:
    """threading.Timer, as far as it is used."""

    daemon = False

    def __init__(self, timers: list[_FakeTimer], at: float, call: Callable[[], None]) -> None:
        self._timers, self.at, self.call = timers, at, call

    def start(self) -> None:
        self._timers.append(self)

    def cancel(self) -> None:
        if self in self._timers:
            self._timers.remove(self)
