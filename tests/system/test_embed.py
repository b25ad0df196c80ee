"""Features of a data set over ranks: the file of one process, also where a rank was killed in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from equimod.train.main import main as train

BLOCKS = """\
import os, signal, sys
from equimod.train.embedding import blocks
blocks.BATCH_SIZE, blocks.BATCHES = 2, 2
write = blocks.Blocks.write
def killed(self, number, h):
    write(self, number, h)
    if os.environ.get("KILLED") == str(number):
        os.kill(os.getpid(), signal.SIGKILL)
blocks.Blocks.write = killed
from equimod.tools.embed import main
sys.exit(main())
"""


def test_ranks_write_the_file_of_one_and_go_on_where_one_was_killed(
    options: list[str], image_tree: Path, tmp_path: Path
) -> None:
    run, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(BLOCKS)
    assert train([*options, "--epochs", "2", "--output", str(run)]) == 0

    def embed(out: str, ranks: int, killed: str = "") -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node"]
        arguments = [str(run), str(image_tree), str(tmp_path / out), "--device", "cpu", "--workers", "1"]
        command = [sys.executable, *([*launcher, str(ranks)] if ranks > 1 else []), str(program), *arguments]
        environment = {**os.environ, "KILLED": killed}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert embed("one.npz", 1).returncode == 0
    assert embed("two.npz", 2, killed="4").returncode != 0
    left = {path.name[:12] for path in (tmp_path / "two.npz.parts").glob("block-*")}
    assert {"block-000000", "block-000003", "block-000004"} <= left
    assert "block-000005" not in left
    done = embed("two.npz", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("features of each image") == 1
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert not (tmp_path / "two.npz.parts").exists()
