"""The choice of a backend for `--backend auto`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from equimod.pipelines.decode import LIBRARY, NO_LIBRARY
from equimod.pipelines.records.beton import BetonRecords
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.resize import KERNEL, NO_KERNEL

BackendName = Literal["native", "dali", "ffcv"]
PACKAGES: dict[BackendName, str] = {"native": "torch", "dali": "nvidia.dali", "ffcv": "ffcv"}


@dataclass(frozen=True)
class Choice:
    """A backend, and why it was picked."""

    backend: BackendName
    reason: str


def installed(backend: BackendName) -> bool:
    """Whether the package of a backend is there; nothing is imported."""
    try:
        return find_spec(PACKAGES[backend]) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def choose(records: Records, device: torch.device) -> Choice:
    """The fastest backend that is installed and gives torchvision's pixels, for these records and this device.

    That is native: the fastest on the CPU (docs/performance.md), and enough for a GPU with a core for about each 800
    images a second that it trains on. DALI decodes on the GPU, in time that training lacks, and was not measured to be
    faster. ffcv resizes by area, so its pixels are further from torchvision's, and it is no faster.
    """
    ffcv = "; ffcv could read these records, but its pixels differ more" * (
        isinstance(records, BetonRecords) and installed("ffcv")
    )
    why = "the fastest on the CPU"
    if device.type == "cuda" and not records.raw:
        why += ", with a core for each 800 images/s; --backend dali decodes on the GPU, not measured to be faster"
    slow = f"; {NO_KERNEL}" * (KERNEL is None) + f"; {NO_LIBRARY}" * (LIBRARY is None)
    return Choice("native", f"{why}{slow}{ffcv}")
