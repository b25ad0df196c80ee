"""Where a result comes from: machine, versions, commit, command and date; no host name."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from equimod.pipelines.cores import available_cores

_PACKAGES = ("equimod", "torch", "torchvision", "pillow", "simplejpeg", "numpy")


def provenance(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What to store beside a result.

    `commit` is that of the git checkout, elsewhere what $EQUIMOD_COMMIT says, with a + where it had changes, or None.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", script, *arguments]),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": available_cores(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def _commit() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not a checkout that this is only installed in
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        sha = os.environ.get("EQUIMOD_COMMIT")
        return {"sha": sha.rstrip("+"), "dirty": sha.endswith("+")} if sha else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
