"""The operators: the same pixels as on the CPU whatever the batch, and what they cost beside what must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equimod.benchmarks.gpu_check.clock import copy_bytes_per_second, host_milliseconds, milliseconds, synchronize
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured
from equimod.benchmarks.gpu_check.workload import crops, drawn
from equimod.pipelines import ops
from equimod.pipelines.build import Operators
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, ViewPolicy

CLOSE = 1e-4  # of images in [0,1], before normalisation: a hundredth of a level of 255 is 4e-5
FAR = 1e-4  # share of values that may differ by more: solarize inverts what lies within rounding of its threshold
BYTES_THAT_MUST_MOVE = 3 + 12  # a pixel: read uint8, write float32; 9 where bf16 is written


def agreement(job: Job) -> Iterator[Finding]:
    """Eager operators of every policy at several batch sizes, against those on the CPU."""
    sizes = job.sized((1, 2, 127, 128), (1, 2, 5))
    policies = job.sized(list(POLICIES), ["simclr_cifar10", "byol_cifar10", "simclr_shapes"])
    for name in policies:
        yield from _agreement(job, name, sizes, ops.apply)


def compiled_agreement(job: Job) -> Iterator[Finding]:
    """The same of the operators by torch.compile. On a CPU for one place of hue only: compiling takes minutes there."""
    from equimod.pipelines.compiled import apply

    for name in job.sized(["simclr_imagenet", "byol_imagenet"], ["simclr_cifar10"]):
        yield from _agreement(job, name, job.sized((2, 127, 128), (2, 3)), apply, first_place=not job.full)


def _agreement(
    job: Job, name: str, sizes: tuple[int, ...], operators: Operators, first_place: bool = False
) -> Iterator[Finding]:
    policy, most = POLICIES[name], max(sizes)
    far, alike = 0.0, True
    for view, params in zip(policy.views, drawn(policy, 10 * most), strict=True):
        rows = torch.arange(most)
        if first_place:
            rows = _with_hue_first(params)[:most]
        chosen, images = params[rows], crops(most, policy.size)
        wanted = ops.apply(images, chosen, view)
        whole: Tensor | None = None
        for n in sorted(sizes, reverse=True):
            found = operators(images[:n].to(job.device), chosen[:n], view)
            whole = found if whole is None else whole
            alike = alike and torch.equal(found, whole[:n])
            far = max(far, _far(found, wanted[:n], view))
    x = ops.apply_center(images.to(job.device), policy.x)
    far = max(far, _far(x, ops.apply_center(images, policy.x), policy.views[0]))
    batches = ", ".join(map(str, sizes))
    yield demand(f"{name}: as on the CPU, N = {batches}", far <= FAR, 1e6 * far, "of a million values are off")
    yield demand(f"{name}: a sample is the same bits in any batch", alike)


def _with_hue_first(params: AugmentationParams) -> Tensor:
    """The samples whose jitter begins with hue: one place of it, so that little is compiled."""
    return (params.jitter & (params.order[:, 0] == 3)).nonzero()[:, 0]


def _far(found: Tensor, wanted: Tensor, view: ViewPolicy) -> float:
    """The share of values of normalised images (N,3,S,S) that are further than CLOSE apart before normalisation."""
    distance = ((found.cpu() - wanted) * torch.tensor(view.normalize.std)[:, None, None]).abs()
    return (~(distance <= CLOSE)).double().mean().item()


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write inside, each tensor of each operator counted; views move nothing."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.bytes = self.launches = self.uploads = 0
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        here = [t for t in (*given, *made) if t.device.type == self._device]
        if here and any(t.device.type != self._device for t in given) and func is torch.ops.aten._to_copy.default:
            self.uploads += 1
        if here and not func.is_view and "empty" not in func.__name__:
            self.launches += 1
            self.bytes += sum(t.numel() * t.element_size() for t in here)
        return out


def speed(job: Job) -> Iterator[Finding]:
    """x and two views of a batch: time on the device, launches, time of the host, bytes a pixel."""
    n, policy = job.sized(128, 4), POLICIES[job.sized("simclr_imagenet", "simclr_cifar10")]
    images, params = crops(n, policy.size).to(job.device), drawn(policy, n)
    work = _views(images, params, policy, ops.apply)
    pixels = 3 * n * policy.size**2
    floor = pixels * BYTES_THAT_MUST_MOVE / copy_bytes_per_second(job.device, job.sized(2**31, 2**24))
    yield measured(f"x and two views of {n}, on the device", milliseconds(job.device, work, rounds=5, calls=5), "ms")
    yield measured("the same by what must move at the rate of a copy", [1e3 * floor], "ms", "15 bytes a pixel, float32")
    yield measured("the host is busy with it", host_milliseconds(job.device, work, rounds=5), "ms")
    yield measured("launches", [_launches(job.device, work)], "", "kernels" if job.full else "operators")
    traffic = Traffic("meta")
    with traffic:
        _views(images.to("meta"), params, policy, ops.apply)()
    note = f"{traffic.launches} operators, {traffic.uploads} uploads; float32 must move 15, bf16 9"
    yield measured("bytes that operators read and write", [traffic.bytes / pixels], "a pixel", note)


def compiled_speed(job: Job) -> Iterator[Finding]:
    """The time of the operators by torch.compile, on a GPU."""
    from equimod.pipelines.compiled import apply

    n, policy = job.sized(128, 2), POLICIES[job.sized("simclr_imagenet", "simclr_cifar10")]
    images, params = crops(n, policy.size).to(job.device), drawn(policy, n)
    if not job.full:  # the one place of hue that `compiled_agreement` has compiled
        params = [p[_with_hue_first(p)[:n]] for p in drawn(policy, 20 * n)]
    work = _views(images, params, policy, apply)
    yield measured(f"x and two views of {n}, compiled", milliseconds(job.device, work, rounds=5, calls=5), "ms")
    yield measured("launches", [_launches(job.device, work)], "", "kernels" if job.full else "operators")


def compiled(job: Job) -> Iterator[Finding]:
    """Agreement, then speed, so that everything is compiled once."""
    yield from compiled_agreement(job)
    yield from compiled_speed(job)


def _views(
    images: Tensor, params: list[AugmentationParams], policy: AugmentationPolicy, operators: Operators
) -> Callable[[], None]:
    def work() -> None:
        ops.apply_center(images, policy.x)
        for p, view in zip(params, policy.views, strict=True):
            operators(images, p, view)

    return work


def _launches(device: torch.device, work: Callable[[], object]) -> int:
    """Kernels and copies that a GPU is given in a call of `work`; on a CPU the operators that run."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiled:
        work()
        synchronize(device)
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    return sum(event.device_type == wanted for event in profiled.events())
