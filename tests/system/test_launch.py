"""train/launch/slurm.sbatch on two nodes of this machine, with SLURM's commands played by small scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nodes import Node, two_nodes

TESTS = Path(__file__).parents[1]
JOB = TESTS.parent / "train" / "launch" / "slurm.sbatch"
OPTIONS = ["--method", "simclr", "--equimod", "--dataset", "cifar10", "--epochs", "4", "--batch-size", "8"]
OPTIONS += ["--encoder.arch", "resnet10", "--encoder.width", "8", "--simclr.hidden", "16", "--simclr.dim", "8"]
OPTIONS += ["--equivariance.projector", "16", "8", "--equivariance.embedding", "8", "--optim.warmup-epochs", "1"]
OPTIONS += ["--log.every", "1", "--log.checkpoint-every", "2", "--system.workers", "1", "--system.device", "cpu"]

SRUN = """\
#!{python}
# What stands behind srun's own options, once on each node. PET_ variables are torchrun's options: a namespace has no
# name of its own, so its address must be said.
import json, os, subprocess, sys
processes = []
for rank, node in enumerate(json.loads(os.environ["NODES"])):
    environment = {{"PET_LOCAL_ADDR": node["address"], "GLOO_SOCKET_IFNAME": node["interface"]}}
    environment["PET_RDZV_CONF"] = f"is_host={{int(rank == 0)}}"
    environment["PET_MONITOR_INTERVAL"] = "0.1"
    command = [argument for argument in sys.argv[1:] if not argument.startswith("--kill-on")]
    processes.append(subprocess.Popen([*node["prefix"], *command], env=os.environ | environment))
sys.exit(max(process.wait() for process in processes))
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder that looks like a checkout to the job, with SLURM's commands in bin/."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "train").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN.format(python=sys.executable))
    (tmp_path / "bin" / "scontrol").write_text('#!/bin/sh\nfor node in $3; do echo "$node"; done\n')
    for command in (tmp_path / "bin").iterdir():
        command.chmod(0o755)
    return tmp_path


def _submit(cluster: Path, nodes: list[Node], fault: list[str], options: list[str]) -> tuple[int, str]:
    """Run the job on `nodes` with a fault of faulty_train.py. Returns (exit code, output)."""
    arguments = [str(TESTS / "faulty_train.py"), *fault]
    (cluster / "train" / "main.py").write_text(
        f"import runpy, sys\nsys.argv[:1] = {arguments!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": " ".join(node.address for node in nodes),
        "SLURM_JOB_NUM_NODES": str(len(nodes)),
        "SLURM_GPUS_ON_NODE": "1",
        "NODES": json.dumps([vars(node) for node in nodes]),
        "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}",
    }
    job = subprocess.run(
        ["bash", str(JOB), *options],
        cwd=cluster,
        env=os.environ | slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    return job.returncode, job.stdout


@pytest.mark.ci
def test_two_nodes_that_lose_a_worker_end_like_two_that_did_not(cluster: Path, image_tree: Path) -> None:
    options = [*OPTIONS, "--data", str(image_tree), "--output"]
    with two_nodes() as nodes:
        code, output = _submit(cluster, nodes, ["-1", "SIGKILL", "0"], [*options, "alone"])
        assert code == 0, output
        assert "2 rank(s)" in output
        code, output = _submit(cluster, nodes, ["5", "SIGKILL", "1"], [*options, "killed"])  # in mid-epoch
    assert code == 0, output
    assert "resumed at step 4" in output
    weights = [(cluster / run / "encoder.safetensors").read_bytes() for run in ("alone", "killed")]
    same = weights[0] == weights[1]  # out of sight of pytest, which would print them
    assert same


@pytest.mark.ci
def test_restarts_that_would_hang_are_refused(image_tree: Path, tmp_path: Path) -> None:
    train = str(TESTS.parent / "train" / "main.py")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("--max-restarts", "1", train, *OPTIONS, "--data", str(image_tree), "--output", str(tmp_path / "run")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    assert "--max-restarts 1 of torchrun works only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in run.stderr
    assert not (tmp_path / "run").exists()
