"""Ranks of a training as processes of this machine, without a launcher between.

They are forked from a process that has imported torch, so that each starts in a moment instead of four seconds. Tests
of how a program starts start Python itself.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "torch.utils.tensorboard", "equimod.benchmarks.rehearse"])


def run_ranks(commands: Sequence[Sequence[str]], folders: Sequence[Path] | None = None) -> list[tuple[int, str]]:
    """Run a command for each rank, in a folder of its own where `folders` are given. Returns (exit code, stderr).

    A command is what stands behind `python`: a file or `-c` and a text, then arguments.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(commands))}
    with tempfile.TemporaryDirectory() as folder:
        errors = [Path(folder) / str(rank) for rank in range(len(commands))]
        processes = []
        for rank, (command, error) in enumerate(zip(commands, errors, strict=True)):
            environment = os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            where = folders[rank] if folders else Path.cwd()
            processes.append(_SERVER.Process(target=_rank, args=(list(command), environment, where, error)))
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(timeout=120)
                said = [error.read_text() for error in errors if error.exists()]
                assert process.exitcode is not None, f"a rank has not ended in two minutes: {said}"
            return [(process.exitcode, error.read_text()) for process, error in zip(processes, errors, strict=True)]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


def _rank(command: list[str], environment: dict[str, str], where: Path, error: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(where)
    for path, stream in ((Path(os.devnull), 1), (error, 2)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream)
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(command[1], {"__name__": "__main__"})
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
