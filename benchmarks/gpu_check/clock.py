"""Time on the device: by CUDA events on a GPU, by the clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(device: torch.device, work: Callable[[], object], rounds: int, calls: int = 1) -> list[float]:
    """Milliseconds of a call of `work`, a value a round of `calls` calls in a row; one more call before warms up."""
    work()
    found = []
    for _ in range(rounds):
        synchronize(device)
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(torch.cuda.current_stream(device))
            for _ in range(calls):
                work()
            end.record(torch.cuda.current_stream(device))
            end.synchronize()
            found.append(begin.elapsed_time(end) / calls)
        else:
            began = time.perf_counter()
            for _ in range(calls):
                work()
            found.append(1e3 * (time.perf_counter() - began) / calls)
    return found


def host_milliseconds(device: torch.device, work: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds that the host is busy with a call of `work`, whose work on the device nobody waits for."""
    work()
    found = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - began))
    return found


def copy_bytes_per_second(device: torch.device, size: int) -> float:
    """Bytes a second that a copy of `size` bytes within the device's memory reads and writes together."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (min(milliseconds(device, lambda: target.copy_(source), rounds=5, calls=3)) / 1e3)


def matmul_flops(device: torch.device, side: int) -> float:
    """Floating point operations a second of a bf16 product of two square matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / (min(milliseconds(device, lambda: a @ b, rounds=5, calls=5)) / 1e3)
