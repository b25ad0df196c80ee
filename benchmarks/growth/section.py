"""What the benchmarks of what grows with the data share."""

from __future__ import annotations

import os
import resource
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from equimod.pipelines.errors import EquimodError, UsageError
from equimod.train.evaluation.table import Table


class ScaleError(EquimodError):
    """What cannot be measured here: the message says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Section(ABC):
    """A benchmark, with the options of its command line as fields."""

    folder: Path
    """Where the data is made, and found again."""
    output: Path | None = None
    """JSON file for the result."""

    def check(self) -> None:
        """Raises UsageError for a number of something that is none."""
        for name, value in self.options().items():
            if isinstance(value, int) and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} is too small; give 1 or more")

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """The result. Raises ScaleError."""

    @classmethod
    @abstractmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """The tables of a result."""

    @classmethod
    @abstractmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """What stands under them in a document."""

    def options(self) -> dict[str, Any]:
        """What a result keeps of the options."""
        return {key: value for key, value in asdict(self).items() if key not in ("folder", "output")}


def sent_by(work: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """What `work` sends over the connection that it is given first, in a process of its own.

    Raises ScaleError where that ends before as much was asked for as is wanted.
    """
    context = get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(send, *arguments))
    process.start()
    send.close()
    try:
        while True:
            yield receive.recv()
    except EOFError:
        raise ScaleError("the process that was measured ended; its own message says why") from None
    finally:
        process.terminate()
        process.join()


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
