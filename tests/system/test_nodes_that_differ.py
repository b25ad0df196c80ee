"""Two nodes that were set up differently: nothing is trained, and every rank says what differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ranks import run_ranks

OPTIONS = ["--method", "simclr", "--equimod", "--dataset", "cifar10", "--batch-size", "8", "--system.device", "cpu"]
TRAIN = "import sys; from equimod.train.main import main; sys.exit(main(sys.argv[1:]))"
OTHER_CODE = """\
import os, sys
from equimod.train import run
from equimod.train.main import main
here = run.code_digests()
other = {**here, "models/losses.py": "of another commit"}
run.code_digests = lambda: other if os.environ["RANK"] == "1" else here
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
    commands = [["-c", script, *OPTIONS, *of_rank] for of_rank in options]
    for code, error in run_ranks(commands, nodes):
        assert code == 2, error
        assert named in error
        assert error.count("\n") == 1
    assert not (nodes[0] / "run").exists()
