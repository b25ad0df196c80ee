"""What a section of the GPU check is given and what it answers with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from equimod.benchmarks.measure import Spread

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """A line of the report: a measured number, or a demand and whether it is met."""

    name: str
    value: Spread | None = None
    unit: str = ""
    met: bool | None = None  # None: nothing is demanded
    note: str = ""


def measured(name: str, values: Iterable[float], unit: str = "", note: str = "") -> Finding:
    """The spread of `values` over the rounds of a measurement."""
    return Finding(name, Spread.of(values), unit, note=note)


def demand(name: str, met: bool, value: float | None = None, unit: str = "", note: str = "") -> Finding:
    """Whether something is as it must be, with the number that decides it where there is one."""
    return Finding(name, None if value is None else Spread.of([value]), unit, bool(met), note)


@dataclass(frozen=True)
class Job:
    """Where a section runs, on what data, and how long it has."""

    device: torch.device
    data: Path | None  # the folder `data` of tools/pack_gpu_check.py; None: images are drawn
    scratch: Path  # a folder of this section alone
    seconds: float  # that the section has
    began: float  # time.monotonic() when it started

    @property
    def full(self) -> bool:
        """Whether to work at the size that is measured; on a CPU the same code runs on a toy."""
        return self.device.type == "cuda"

    def sized(self, full: T, toy: T) -> T:
        """The first on a GPU, the second on a CPU."""
        return full if self.full else toy

    def seconds_left(self) -> float:
        """Of the section's time."""
        return self.seconds - (time.monotonic() - self.began)
