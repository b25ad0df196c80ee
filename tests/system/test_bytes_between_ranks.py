"""A rehearsal on one process counts the bytes that real ranks hand over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ranks import run_ranks

from equimod.benchmarks.rehearse import pretended_ranks, rehearse
from equimod.train.config import parse

OPTIONS = ["--dataset", "cifar10", "--data", "records", "--batch-size", "16", "--precision", "fp32"]
OPTIONS += ["--encoder.arch", "resnet10", "--encoder.width", "8", "--optim.warmup-epochs", "1"]
METHODS = {
    "simclr": ["--equimod"],
    "byol": ["--equimod", "--grad-cache", "2"],
    "barlow_twins": ["--essl"],
    "vicreg": ["--online-probe"],
}
REAL = """\
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from equimod.benchmarks.rehearse import Collectives, Photos, batch_without_values, step
from equimod.train.config import parse
from equimod.train.distributed import process_group
from equimod.train.run import build_train_state
found = {}
with process_group("cpu") as dist_info:
    for method, options in json.loads(sys.argv[2]).items():
        config = parse(options)
        state = build_train_state(config, Photos(), 312, dist_info)
        batch = batch_without_values(config, config.batch_size // dist_info.world_size, torch.device("cpu"))
        batch = replace(batch, label=torch.zeros_like(batch.label))
        with Collectives() as counted:
            step(state, batch)
        found[method] = counted.bytes
    (Path(sys.argv[1]) / f"{dist_info.rank}.json").write_text(json.dumps(found))
"""


def _options(method: str) -> list[str]:
    return [*OPTIONS, "--method", method, *METHODS[method]]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.ci)])
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank of 2, then of 4, has counted of every method."""
    folder = tmp_path_factory.mktemp("counted")
    options = json.dumps({method: _options(method) for method in METHODS})
    ended = run_ranks([["-c", REAL, str(folder), options]] * request.param)
    assert [code for code, _ in ended] == [0] * request.param, ended
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("method", METHODS)
def test_a_rehearsal_counts_the_bytes_that_real_ranks_hand_over(method: str, counted: list[dict[str, Any]]) -> None:
    with pretended_ranks(len(counted)) as here:
        rehearsed = rehearse(parse(_options(method)), here)
    assert [found[method] for found in counted] == [rehearsed["bytes"]] * len(counted)
