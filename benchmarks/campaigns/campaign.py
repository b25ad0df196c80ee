"""What a campaign is: a promise, tried again and again with another input or at another moment, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """What came of one trial."""

    outcome: str  # in a few words, the same for all that ended alike
    fault: str = ""  # what broke the promise, in one line; empty where it held


@dataclass(frozen=True)
class Campaign:
    """Trials of one promise."""

    promise: str
    test: str  # that holds it, as tests/FILE.py::FUNCTION
    trials: int
    quick: int  # trials of the quick form
    run: Callable[[Path, int, int], Iterator[Trial]]
    """Called with an empty folder, a seed and the number of trials."""
