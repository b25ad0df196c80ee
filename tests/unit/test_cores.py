"""Ranks of a node share its cores: whole ones, near their GPU, and on a GPU some of them left to training."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from equimod.pipelines import build
from equimod.pipelines import cores as cores_of_node
from equimod.pipelines.backends import native_backend
from equimod.pipelines.cores import loader_cores, stay_on
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records

Shares = Callable[..., list[list[int]]]


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree like /sys that tells nothing yet."""
    monkeypatch.setattr(cores_of_node, "SYS", tmp_path)
    return tmp_path


@pytest.fixture
def shares(sys: Path, monkeypatch: pytest.MonkeyPatch) -> Shares:
    """What each of the ranks of a node takes of cores."""

    def take(have: Iterable[int], ranks: int, gpus: list[str] | None = None) -> list[list[int]]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(have))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        found = []
        for rank in range(ranks):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            found.append(loader_cores(gpus or []))
        return found

    return take


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def _hyperthreads(sys: Path, *whole: tuple[int, ...]) -> None:
    for threads in whole:
        for core in threads:
            file = sys / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list"
            _write(file, ",".join(map(str, threads)))


def _nodes(sys: Path, *lists: str) -> None:
    for node, cores in enumerate(lists):
        _write(sys / f"devices/system/node/node{node}/cpulist", cores)


def _gpus(sys: Path, *nodes: int) -> list[str]:
    """Addresses of GPUs that lie in these NUMA nodes."""
    addresses = [f"0000:{number:02x}:00.0" for number in range(len(nodes))]
    for address, node in zip(addresses, nodes, strict=True):
        _write(sys / f"bus/pci/devices/{address}/numa_node", str(node))
    return addresses


@pytest.mark.parametrize(("cores", "ranks"), [(16, 8), (13, 4), (2, 1), (3, 3)])
def test_ranks_split_the_cores_evenly(cores: int, ranks: int, shares: Shares) -> None:
    have = range(5, 5 + cores)
    found = shares(have, ranks)
    assert sorted(chain(*found)) == list(have)
    assert {len(share) for share in found} <= {cores // ranks, -(-cores // ranks)}


def test_more_ranks_than_cores_share_none(shares: Shares) -> None:
    assert sorted(map(len, shares({0, 1}, 4))) == [0, 0, 1, 1]


def test_hyperthreads_of_a_core_stay_together(sys: Path, shares: Shares) -> None:
    _hyperthreads(sys, (0, 4), (1, 5), (2, 6), (3, 7))
    assert shares(range(8), 2) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert shares({0, 1, 2, 3, 4}, 2) == [[0, 1, 4], [2, 3]]  # of a container with fewer
    _hyperthreads(sys, (0, 1), (2, 3), (4, 5), (6, 7))
    assert shares(range(8), 4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert sorted(map(len, shares(range(8), 5))) == [1, 1, 2, 2, 2]  # more ranks than whole cores


def test_ranks_take_cores_near_their_gpu(sys: Path, shares: Shares) -> None:
    """Four GPUs, of which the first and the last are at the second socket."""
    _nodes(sys, "0-7", "8-15")
    assert shares(range(16), 4, _gpus(sys, 1, 0, 0, 1)) == [
        [8, 9, 10],
        [0, 1, 2],
        [4, 5, 6],
        [12, 13, 14],
    ]


def test_two_sockets_with_hyperthreads_and_eight_gpus(sys: Path, shares: Shares) -> None:
    """64 cores, 128 threads, four GPUs a socket: eight cores a rank, two of which stay free."""
    _hyperthreads(sys, *((core, core + 64) for core in range(64)))
    _nodes(sys, "0-31,64-95", "32-63,96-127")
    found = shares(range(128), 8, _gpus(sys, 0, 0, 0, 0, 1, 1, 1, 1))
    assert [len(share) for share in found] == [2 * (8 - 2)] * 8
    assert found[0] == [*range(6), *range(64, 70)]
    assert found[7] == [*range(56, 62), *range(120, 126)]


def test_ranks_whose_gpus_share_a_node_split_its_cores_alone(sys: Path, shares: Shares) -> None:
    """Whole where the container has the node, and what it has of it where not; the other node's stay out."""
    _nodes(sys, "0-7", "8-15")
    assert shares(range(16), 2, _gpus(sys, 0, 0)) == [[0, 1, 2], [4, 5, 6]]
    assert shares({2, 3, *range(8, 16)}, 2, _gpus(sys, 0, 0)) == [[2], [3]]


@pytest.mark.parametrize(("cores", "free"), [(2, 0), (3, 0), (4, 1), (8, 2), (12, 3), (64, 3)])
def test_on_a_gpu_some_cores_stay_free(cores: int, free: int, sys: Path, shares: Shares) -> None:
    assert shares(range(cores), 1, _gpus(sys, -1)) == [list(range(cores - free))]
    assert shares(range(cores), 1) == [list(range(cores))]


@pytest.mark.parametrize("numa", [(0, -1), (0, 2), (0, 0)])
def test_all_share_all_cores_where_those_near_a_gpu_are_unknown_or_too_few(
    numa: tuple[int, int], sys: Path, shares: Shares
) -> None:
    """A node that is not told, one that is nowhere, and one of whose cores the container has but one."""
    _nodes(sys, "0-3", "4-7")
    assert shares({3, 4, 5, 6}, 2, _gpus(sys, *numa)) == [[3, 4], [5, 6]]


@pytest.mark.parametrize("text", ["", "nonsense", "1-", "-1"])
def test_files_that_say_nothing_sensible_are_as_good_as_none(text: str, sys: Path, shares: Shares) -> None:
    _hyperthreads(sys, (0, 1), (2, 3))
    _write(sys / "devices/system/cpu/cpu0/topology/thread_siblings_list", text)
    gpus = _gpus(sys, 0, 0)
    _write(sys / f"bus/pci/devices/{gpus[0]}/numa_node", text)
    _nodes(sys, text)
    assert sorted(chain(*shares(range(4), 2, gpus))) == [0, 1, 2, 3]


def test_gpus_are_told_by_their_pci_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {0: (0, 0x1A, 0), 1: (1, 2, 31)}

    def properties(index: int) -> SimpleNamespace:
        domain, bus, device = told[index]
        return SimpleNamespace(pci_domain_id=domain, pci_bus_id=bus, pci_device_id=device)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert build._gpus(torch.device("cuda", 1)) == ["0000:1a:00.0", "0001:02:1f.0"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert build._gpus(torch.device("cuda", 1)) == ["0001:02:1f.0"]
    assert build._gpus(torch.device("cpu")) == []


def test_a_pipeline_on_a_gpu_leaves_cores_free(
    image_tree: Path, sys: Path, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight cores, of which two stay free, whatever the number of threads."""
    shares(range(8), 1)
    gpu = SimpleNamespace(pci_domain_id=0, pci_bus_id=1, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    records, policy = open_records(image_tree), POLICIES["simclr_cifar10"]
    for asked, device, threads, cores in ((None, "cuda:0", 6, 6), (11, "cuda:0", 11, 6), (None, "cpu", 8, 8)):
        pipeline = build.build_pipeline(records, policy, batch_size=4, seed=0, device=device, workers=asked)
        config = pipeline._backend(policy.size)._config
        assert (pipeline.workers, config.cores) == (threads, list(range(cores)))


def test_threads_that_decode_keep_to_the_cores_of_the_loader(
    image_tree: Path, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[int]] = []
    shares({3, 5}, 1)
    monkeypatch.setattr(native_backend, "stay_on", kept.append)
    pipeline = build.build_pipeline(
        open_records(image_tree), POLICIES["simclr_cifar10"], batch_size=4, seed=0, workers=1
    )
    assert len(list(pipeline.decoded(0))) == len(pipeline)
    assert kept == [[3, 5]]


def test_a_thread_keeps_to_its_cores_and_leaves_the_others_alone() -> None:
    before, last = os.sched_getaffinity(0), max(os.sched_getaffinity(0))
    found: list[set[int]] = []

    def stay() -> None:
        stay_on([last])
        found.append(os.sched_getaffinity(0))
        stay_on([])
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=stay)
    thread.start()
    thread.join()
    assert found == [{last}, {last}]
    assert os.sched_getaffinity(0) == before
