"""No test of this folder starts a process: what would convert or draw in worker processes does so in threads."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import popen_fork, util
from types import SimpleNamespace
from typing import Any

import pytest
import torch  # noqa: F401  # whose first import asks ldconfig

from equimod.pipelines import shapes
from equimod.pipelines.conversion import convert
from equimod.train.evaluation import provenance


def _threads(workers: int, initialize: Callable[..., None] | None = None, *arguments: Any) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, initializer=initialize, initargs=arguments)


class _Value(SimpleNamespace):
    """multiprocessing.Value for threads."""

    def __init__(self, kind: str, value: int) -> None:
        super().__init__(value=value, lock=threading.Lock())

    def get_lock(self) -> threading.Lock:
        return self.lock


def _refuse(*_: object, **__: object) -> None:
    pytest.fail("a test of tests/unit/ starts a process; start none or move it to tests/system/")


@pytest.fixture(autouse=True, scope="module")
def _no_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "SPAWN", SimpleNamespace(Event=threading.Event, Value=_Value))
        for module in (convert, shapes):
            patch.setattr(module, "worker_pool", _threads)
        patch.setattr(provenance, "_commit", lambda: None)  # it asks git
        for owner, name in (
            (subprocess.Popen, "__init__"),
            (popen_fork.Popen, "__init__"),
            (util, "spawnv_passfds"),
            (os, "fork"),
        ):
            patch.setattr(owner, name, _refuse)
        yield
