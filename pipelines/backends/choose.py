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

    On the CPU that is native (see the README's table). ffcv is never picked: it resizes by area, so its pixels are
    further from torchvision's, and it is no faster.
    """
    ffcv = "; ffcv could read these records, but its pixels differ more" * (
        isinstance(records, BetonRecords) and installed("ffcv")
    )
    if device.type != "cuda":
        slow = f"; {NO_KERNEL}" * (KERNEL is None) + f"; {NO_LIBRARY}" * (LIBRARY is None)
        return Choice("native", f"the fastest on the CPU{slow}{ffcv}")
    if records.raw:
        return Choice("native", f"the records hold pixels, so there is nothing to decode on the GPU{ffcv}")
    if not installed("dali"):
        return Choice("native", f"DALI, which decodes on the GPU, is missing: pip install 'equimod[dali]'{ffcv}")
    return Choice("dali", f"it decodes on the GPU{ffcv}")
