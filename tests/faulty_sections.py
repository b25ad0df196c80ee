"""Sections of the GPU check that go wrong, each in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from equimod.benchmarks.gpu_check.report import Finding, Job, demand


def raises(job: Job) -> Iterator[Finding]:
    yield demand("before", True)
    raise ValueError("the second line\nis not told")


def dies(job: Job) -> Iterator[Finding]:
    yield demand("before", True)
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(job: Job) -> Iterator[Finding]:
    """With a process of its own, whose number it tells."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield demand("child", True, child.pid)
    time.sleep(600)


def lingers(job: Job) -> Iterator[Finding]:
    """Has said all, and does not end: a thread of its own goes on."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    yield demand("before", True)
