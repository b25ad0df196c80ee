"""Backends turn requests (which sample, which boxes) into uint8 images. A new one is an entry in `BACKENDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.errors import UsageError
from equimod.pipelines.policy import AugmentationPolicy
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.timing import StageTimes


class BackendUnavailableError(UsageError):
    """A backend whose package is not installed, or that cannot serve these records: the message holds the remedy."""


@dataclass(frozen=True)
class Request:
    """A batch to be read: where its samples lie, and the box of each view."""

    position: NDArray[np.int64]  # (N,) in the records
    boxes: tuple[Tensor, ...]  # a view: float64 (N,4), x, y, width, height in pixels of the image as it is stored


@dataclass(frozen=True)
class Images:
    """The images of one request: uint8 (N,3,S,S), in memory that is never handed out again.

    They lie on the host, or on the training device where the backend decodes there.
    """

    x: Tensor | None
    views: tuple[Tensor, ...]


class Backend(Protocol):
    def load(self, requests: Iterator[Request]) -> Iterator[Images]:
        """Answer every request, in order, reading ahead. Closing the iterator frees what it holds.

        Raises RecordsError, naming the sample, where one cannot be read or decoded.
        """
        ...


@dataclass(frozen=True)
class BackendConfig:
    """What a backend is made from."""

    records: Records
    policy: AugmentationPolicy
    with_x: bool
    batch_size: int  # of the largest request
    workers: int
    cores: Sequence[int]  # that they keep to, where threads can
    device: torch.device  # that the images are for
    stages: StageTimes  # for the seconds of its threads, by the names of `timing.LOADER`, where it can tell them


BackendFactory = Callable[[BackendConfig], Backend]


@contextmanager
def kept_torch_threads() -> Iterator[None]:
    """Leave torch's number of threads as it is, whatever ffcv sets inside."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _native() -> BackendFactory:
    from equimod.pipelines.backends.native_backend import NativeBackend

    return NativeBackend


def _dali() -> BackendFactory:
    try:
        from equimod.pipelines.backends.dali_backend import DaliBackend
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(f"backend=dali needs DALI ({error}); pip install 'equimod[dali]'") from error
    return DaliBackend


def _ffcv() -> BackendFactory:
    try:
        with kept_torch_threads():
            from equimod.pipelines.backends.ffcv_backend import FfcvBackend
    except (ImportError, OSError) as error:  # a compiled extension, whose libraries may be missing
        raise BackendUnavailableError(
            f"backend=ffcv needs ffcv ({error}); apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++, "
            "then pip install 'equimod[ffcv]'"
        ) from error
    return FfcvBackend


BACKENDS = {"native": _native, "dali": _dali, "ffcv": _ffcv}
"""Name to a function that imports the backend: what an optional one needs is imported only where it is used."""
