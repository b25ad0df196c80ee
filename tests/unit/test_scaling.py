"""The prediction of scale, where a hand can check it. Bytes of real ranks: tests/system/test_bytes_between_ranks.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from equimod.benchmarks import scaling
from equimod.benchmarks.scaling import Arguments, Device, Network, main, predict


@pytest.fixture(autouse=True, scope="module")
def _rehearsed_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "rehearse", cache(scaling.rehearse))
        yield


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
    assert predict(replace(arguments, device=replace(arguments.device, chunk=256)), 1)["images_per_s"] == 1000
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
    assert main(["--batch-size", "4", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["ranks"] for row in rows] == [1, 2, 4]
    assert main(["--network.between-gb-s", "0"]) == 2
    assert "between_gb_s=0.0; give a number above 0" in capsys.readouterr().err
