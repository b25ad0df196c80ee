"""The operators: the same pixels as on the CPU whatever the batch, and what they cost beside what must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from equimod.benchmarks.gpu_check.clock import copy_bytes_per_second, host_milliseconds, synchronize
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured
from equimod.benchmarks.gpu_check.workload import crops, drawn
from equimod.benchmarks.measure import Spread
from equimod.pipelines.operators import EagerOperators, Operators, TritonOperators, operators_for
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy, Normalize, ViewPolicy

Policies = tuple[ViewPolicy | CenterPolicy, ...]
"""Those of x and of the views."""
CLOSE = 1e-4  # of images in [0,1], before normalisation: a hundredth of a level of 255 is 4e-5
FAR = 1e-4  # share of values that may differ by more: solarize inverts what lies within rounding of its threshold
AIM_MS = 0.5  # of a batch of 128 on one H100


def agreement(job: Job) -> Iterator[Finding]:
    """The operators of a pipeline on this device, and the eager ones, of every policy at several batch sizes."""
    chosen = operators_for(job.device)
    if job.full:
        triton = isinstance(chosen, TritonOperators)
        yield demand("the operators of a pipeline are Triton kernels", triton, note=chosen.description)
    policies = job.sized(list(POLICIES), ["simclr_cifar10", "byol_cifar10", "simclr_shapes"])
    for operators in (chosen, EagerOperators()) if job.full else (chosen,):
        for name in policies:
            yield from _agreement(job, name, job.sized((1, 2, 127, 128), (1, 2, 5)), operators)


def _agreement(job: Job, name: str, sizes: tuple[int, ...], operators: Operators) -> Iterator[Finding]:
    policy, most = POLICIES[name], max(sizes)
    images = crops(most, policy.size)
    far, alike = 0.0, True
    policies: Policies = (policy.x, *policy.views)
    for view, params in zip(policies, (None, *drawn(policy, most)), strict=True):
        wanted = _operated(EagerOperators(), images, params, view)
        whole = _operated(operators, images.to(job.device), params, view)
        for n in sizes:
            some = None if params is None else params[:n]
            found = _operated(operators, images[:n].to(job.device), some, view)
            alike = alike and torch.equal(found, whole[:n])
            far = max(far, _far(found, wanted[:n], view.normalize))
    batches = ", ".join(map(str, sizes))
    title = f"{name}, {operators.description}"
    yield demand(f"{title}: as on the CPU, N = {batches}", far <= FAR, 1e6 * far, "of a million values are off")
    yield demand(f"{title}: a sample is the same bits in any batch", alike)


def _operated(
    operators: Operators, images: Tensor, params: AugmentationParams | None, policy: ViewPolicy | CenterPolicy
) -> Tensor:
    out = torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)
    operators(images, params, operators.table(params, policy).to(images.device), policy, out)
    return out


def _far(found: Tensor, wanted: Tensor, normalize: Normalize) -> float:
    """The share of values of normalised images (N,3,S,S) that are further than CLOSE apart before normalisation."""
    distance = ((found.cpu() - wanted) * torch.tensor(normalize.std)[:, None, None]).abs()
    return (~(distance <= CLOSE)).double().mean().item()


def speed(job: Job) -> Iterator[Finding]:
    """x and two views of a batch: time on the device, launches, time of the host."""
    n, policy = job.sized(128, 4), POLICIES[job.sized("simclr_imagenet", "simclr_cifar10")]
    pixels, copied = 3 * n * policy.size**2, copy_bytes_per_second(job.device, job.sized(2**31, 2**24))
    for dtype in (torch.bfloat16, torch.float32):
        floor = pixels * (3 + 3 * dtype.itemsize) / copied
        for operators in (operators_for(job.device), EagerOperators()) if job.full else (EagerOperators(),):
            work, title = _work(job, n, policy, operators, dtype), f"{operators.description}, {_name(dtype)}"
            work()
            turns = [_launches(job.device, work) for _ in range(5)]
            ms = Spread.of(milliseconds for _, milliseconds in turns)
            aim = f"{AIM_MS} ms on an H100 is the aim, {1e3 * floor:.2f} ms what must move at the rate of a copy"
            met = ms.median <= AIM_MS if job.full and isinstance(operators, TritonOperators) else None
            yield Finding(f"{title}: x and two views of {n}", ms, "ms", met, f"of kernels; {aim}")
            yield measured(f"{title}: the host", host_milliseconds(job.device, work, rounds=5), "ms")
            yield measured(f"{title}: launches", [turns[0][0]], "", "kernels" if job.full else "operators")


def _work(job: Job, n: int, policy: AugmentationPolicy, operators: Operators, dtype: torch.dtype) -> Callable[[], None]:
    """The operators on a batch whose images and tables are on the device."""
    policies: Policies = (policy.x, *policy.views)
    images, params = crops(n, policy.size).to(job.device), (None, *drawn(policy, n))
    out = torch.empty(3 * n, policy.size, policy.size, 3, dtype=dtype, device=job.device).permute(0, 3, 1, 2)
    tables = [operators.table(p, view).to(job.device) for p, view in zip(params, policies, strict=True)]

    def work() -> None:
        for table, p, view, part in zip(tables, params, policies, out.split(n), strict=True):
            operators(images, p, table, view, part)

    return work


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _launches(device: torch.device, work: Callable[[], object]) -> tuple[int, float]:
    """Kernels and copies that a GPU is given in a call of `work`, and their milliseconds; on a CPU its operators.

    Their own time, since the host gives a small kernel out more slowly than a GPU is through with it.
    """
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiled:
        work()
        synchronize(device)
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    times = [
        event.time_range.elapsed_us() if gpu else event.self_cpu_time_total
        for event in profiled.events()
        if event.device_type == wanted
    ]
    return len(times), sum(times) / 1e3
