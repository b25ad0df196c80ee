"""Two nodes that were set up differently: nothing is trained, and every rank says what differs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = ["--method", "simclr", "--equimod", "--dataset", "cifar10", "--epochs", "4", "--batch-size", "8"]
OPTIONS += ["--encoder.arch", "resnet10", "--encoder.width", "8", "--simclr.hidden", "16", "--simclr.dim", "8"]
OPTIONS += ["--equivariance.projector", "16", "8", "--equivariance.embedding", "8", "--optim.warmup-epochs", "1"]
OPTIONS += ["--log.every", "1", "--log.checkpoint-every", "2", "--system.workers", "1", "--system.device", "cpu"]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _two_ranks(script: str, options: list[list[str]], folders: list[Path]) -> list[tuple[int, str]]:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *OPTIONS, *options[rank]],
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            cwd=folders[rank],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [(rank.wait(timeout=120), rank.communicate()[1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


TRAIN = "import sys; from equimod.train.main import main; sys.exit(main(sys.argv[1:]))"
OTHER_CODE = """\
import os, sys
from equimod.train import run
from equimod.train.main import main
digest = run.code_digest()
run.code_digest = lambda: digest.replace("models/losses.py", "models/losses.py of another commit") \\
    if os.environ["RANK"] == "1" else digest
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def nodes(image_tree: Path, tmp_path: Path) -> list[Path]:
    """Two folders with the same images, as two nodes with a disk each."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        shutil.copytree(image_tree, folder / "images")
    return folders


@pytest.mark.parametrize("disagreement", ["configuration", "records", "code"])
def test_ranks_that_disagree_stop_at_once_and_say_about_what(nodes: list[Path], disagreement: str) -> None:
    options = [["--data", "images", "--output", "run"]] * 2
    script, named = TRAIN, ""
    if disagreement == "configuration":
        options = [options[0], [*options[0], "--optim.lr", "0.125"]]
        named = "the configuration differs between the ranks: '  lr: 4.0' on rank 0, '  lr: 0.125' on rank 1"
    elif disagreement == "records":
        next((nodes[1] / "images").glob("*/*")).unlink()
        named = "the content of the training records differs between the ranks"
    else:
        script, named = OTHER_CODE, "the code of equimod differs between the ranks: 'models/losses.py"
    for code, error in _two_ranks(script, options, nodes):
        assert code == 2, error
        assert named in error
        assert error.count("\n") == 1
    assert not (nodes[0] / "run").exists()
