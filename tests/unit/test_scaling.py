"""What the prediction of scale rests on: bytes that real ranks hand over, and times that a hand can check."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run_ranks

from equimod.benchmarks.rehearse import pretended_world, rehearse
from equimod.benchmarks.scaling import Arguments, Device, Network, main, predict
from equimod.train.config import parse

OPTIONS = ["--dataset", "cifar10", "--data", "records", "--batch-size", "16", "--precision", "fp32"]
OPTIONS += ["--encoder.arch", "resnet10", "--encoder.width", "8", "--optim.warmup-epochs", "1"]

REAL = """\
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from equimod.benchmarks.rehearse import Collectives, Photos, batch_without_values, step
from equimod.train.config import parse
from equimod.train.distributed import world
from equimod.train.run import training_parts
config = parse(sys.argv[2:])
with world("cpu") as here:
    parts = training_parts(config, Photos(), 312, here)
    batch = batch_without_values(config, config.batch_size // here.size, torch.device("cpu"))
    batch = replace(batch, label=torch.zeros_like(batch.label))
    with Collectives() as counted:
        step(parts, batch)
    (Path(sys.argv[1]) / f"{here.rank}.json").write_text(json.dumps(counted.bytes))
"""


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "method",
    [
        ["simclr", "--equimod"],
        ["byol", "--equimod", "--accumulate", "2"],
        ["barlow_twins", "--essl"],
        ["vicreg", "--online-probe"],
    ],
    ids=lambda options: options[0],
)
def test_a_rehearsal_counts_the_bytes_that_real_ranks_hand_over(method: list[str], ranks: int, tmp_path: Path) -> None:
    options = [*OPTIONS, "--method", *method]
    ended = run_ranks([["-c", REAL, str(tmp_path), *options]] * ranks)
    assert [code for code, _ in ended] == [0] * ranks, ended
    with pretended_world(ranks) as here:
        counted = rehearse(parse(options), here)
    of_norms = counted["batchnorm"]
    assert of_norms["calls"] > of_norms["backward_calls"] or "byol" not in method
    expected = {
        "allgather": counted["bytes"].get("allgather", 0) + 8 * of_norms["channels"],
        "allreduce": counted["bytes"]["allreduce"] + 8 * of_norms["backward_channels"],
    }
    for rank in range(ranks):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def test_collectives_take_what_a_hand_computes() -> None:
    network = Network(gpus_a_node=4, inside_gb_s=100, between_gb_s=10, inside_us=1, between_us=10)
    assert network.all_reduce(10**9, 1) == 0
    assert network.all_reduce(10**9, 2) == pytest.approx(2 * 0.5 / 100 + 2e-6)  # a ring of two, there and back
    assert network.all_reduce(10**9, 8) == pytest.approx(2 * 7 / 8 / 10 + 2 * (6 * 1 + 10) * 1e-6)
    assert network.all_reduce(8, 64) == pytest.approx(2 * 8 / 10e9 + 2 * (4 * 10 + 3 * 1) * 1e-6)  # a tree of 16 nodes
    assert network.all_gather(10**6, 8) == pytest.approx(7e6 / 10e9 + (6 * 1 + 10) * 1e-6)


@pytest.fixture(scope="module")
def arguments() -> Arguments:
    return Arguments(batch_size=256, device=Device(images_per_s=1000, least_ms=1))


def test_one_gpu_is_as_fast_as_it_was_measured(arguments: Arguments) -> None:
    alone = predict(arguments, 1)
    assert alone["step_s"] == pytest.approx(0.256 * 4 / 3)  # in parts of 128
    assert predict(replace(arguments, device=replace(arguments.device, part=256)), 1)["images_per_s"] == 1000
    assert alone["cores_a_node"] == pytest.approx(alone["images_per_s"] * 1.44 / 1e3)


def test_with_a_network_that_costs_nothing_all_gpus_count(arguments: Arguments) -> None:
    free = Network(inside_gb_s=1e9, between_gb_s=1e9, inside_us=1e-9, between_us=1e-9)
    found = predict(replace(arguments, network=free), 64)
    assert found["efficiency"] == pytest.approx(1, rel=1e-4)
    assert found["images_per_s"] == pytest.approx(64_000, rel=1e-4)
    assert found["step_s"] < predict(arguments, 64)["step_s"]


def test_a_slow_network_shows_the_gradients_that_do_not_hide(arguments: Arguments) -> None:
    slow = replace(arguments, network=Network(between_gb_s=1))
    found = predict(slow, 16)
    bytes_of_gradients = 163.4e6
    assert found["gradients_s"] == pytest.approx(2 * bytes_of_gradients * 15 / 16 / 1e9 - 0.016 * 2 / 3, rel=0.01)


def test_the_result_is_kept_and_a_wrong_number_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scaling.json"
    assert main(["--batch-size", "64", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["ranks"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    assert main(["--network.between-gb-s", "0"]) == 2
    assert "between_gb_s=0.0; give a number above 0" in capsys.readouterr().err
