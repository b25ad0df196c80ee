"""Two nodes on one machine: network namespaces with a cable between, or the loopback where those are not allowed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """How to start a command on a node, and where the other node finds it."""

    prefix: list[str]
    address: str
    interface: str


@contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Two nodes that reach each other and nothing else."""
    names = [f"equimod-{os.getpid()}-{i}" for i in range(2)]
    addresses = ["10.213.0.1", "10.213.0.2"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        nodes = [Node(["ip", "netns", "exec", n], a, "cable") for n, a in zip(names, addresses, strict=True)]
    except (OSError, subprocess.CalledProcessError):
        nodes = [Node([], "127.0.0.1", "lo")] * 2
    try:
        yield nodes
    finally:
        for name in names:
            with suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
