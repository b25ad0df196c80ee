"""A process that uses records at a URL ends when it wants to, whatever is still on its way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conversions import converted

from equimod.benchmarks.growth.file_server import served, slow

PROGRAM = """
import sys, numpy as np
from pathlib import Path
from equimod.pipelines.records import open_records, remote
remote.BLOCK = 500
records = open_records(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
records.will_read(np.arange(len(records)))
"""


def test_it_does_not_wait_for_what_nobody_will_use(image_tree: Path, tmp_path: Path) -> None:
    converted(image_tree, tmp_path / "served" / "records")
    environment = os.environ | {"EQUIMOD_CACHE": str(tmp_path / "cache")}
    with served(tmp_path / "served") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"{server.url}/records"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        server.fault = slow(20)
        try:
            process.communicate("\n", timeout=15)
        finally:
            process.kill()
            server.fault = slow(0)
        assert process.returncode == 0
