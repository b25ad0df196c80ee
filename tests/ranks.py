"""Ranks of a training as processes of this machine, without a launcher between."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run_ranks(commands: Sequence[Sequence[str]], folders: Sequence[Path] | None = None) -> list[tuple[int, str]]:
    """Run a command for each rank, in a folder of its own where `folders` are given. Returns (exit code, stderr)."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment["WORLD_SIZE"] = str(len(commands))
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folders[rank] if folders else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    try:
        return [(process.wait(timeout=120), process.communicate()[1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
