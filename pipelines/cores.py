"""The cores of a node, and which of them a rank's loader takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

SYS = Path("/sys")  # where Linux tells what a machine is made of
_MOST_FREE = 3  # cores for training, its prefetch thread and the threads of collectives


def available_cores() -> int:
    """How many cores this process may run on, hyperthreads counted."""
    return len(_available())


def loader_cores(gpus: Sequence[str] = ()) -> list[int]:
    """The cores, hyperthreads counted, that threads of this rank's loader keep to; empty where ranks outnumber cores.

    `gpus`: PCI addresses of the GPUs of the node's ranks, in their order, where they train on GPUs. Then a quarter of
    the rank's whole cores, at most three, stay free for training. torchrun tells which rank of the node this one is.
    """
    share = _share(gpus)
    free = min(_MOST_FREE, len(share) // 4) if gpus else 0
    return sorted(core for whole in share[: len(share) - free] for core in whole)


def stay_on(cores: Sequence[int]) -> None:
    """Keep the calling thread on these cores, where there are any and the system can."""
    if hasattr(os, "sched_setaffinity") and cores:
        os.sched_setaffinity(0, cores)


def _share(gpus: Sequence[str]) -> list[tuple[int, ...]]:
    """This rank's cores, each with its hyperthreads, disjoint from those of the node's other ranks.

    Those of the NUMA node of its GPU, shared with the ranks whose GPUs are there too. Where a GPU's node is unknown or
    has fewer cores than ranks, all ranks share all cores.
    """
    ranks, rank = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cores = _available()
    whole = sorted({_siblings(core, cores) for core in cores})
    if len(whole) < ranks or sum(map(len, whole)) != len(cores):
        whole = [(core,) for core in cores]
    nodes = [_node_of(gpu) for gpu in gpus]
    if len(nodes) != ranks:
        return _part(whole, rank, ranks)
    cores_of = {node: _cores_of(node) for node in set(nodes)}
    near = {node: [threads for threads in whole if cores_of[node].issuperset(threads)] for node in cores_of}
    if any(len(near[node]) < nodes.count(node) for node in nodes):
        return _part(whole, rank, ranks)
    node = nodes[rank]
    return _part(near[node], nodes[:rank].count(node), nodes.count(node))


def _available() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _part(cores: list[tuple[int, ...]], number: int, parts: int) -> list[tuple[int, ...]]:
    return cores[len(cores) * number // parts : len(cores) * (number + 1) // parts]


def _siblings(core: int, cores: Sequence[int]) -> tuple[int, ...]:
    """The hyperthreads of a core's whole core that are among `cores`."""
    told = _listed(SYS / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return tuple(sorted({core, *told.intersection(cores)}))


def _node_of(gpu: str) -> int:
    """The NUMA node of a GPU, -1 where the system does not say."""
    try:
        return int((SYS / f"bus/pci/devices/{gpu}/numa_node").read_text())
    except (OSError, ValueError):
        return -1


def _cores_of(node: int) -> set[int]:
    return _listed(SYS / f"devices/system/node/node{node}/cpulist")


def _listed(file: Path) -> set[int]:
    """The numbers of a list such as "0-3,8", none where there is no such file."""
    try:
        ranges = [part.split("-") for part in file.read_text().strip().split(",") if part]
        return {number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}
    except (OSError, ValueError):
        return set()
