"""Hidden waits: places where the host stops until the device has caught up.

On a GPU torch itself tells of them. Elsewhere the same code runs on the device "meta", whose tensors have no values, so
that reading one raises; uploads that would block are counted as they are called.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from equimod.benchmarks.gpu_check.report import Finding, Job, demand
from equimod.benchmarks.gpu_check.workload import DrawnRecords, Photos, alone, config_of, crops, drawn, random_batch
from equimod.benchmarks.rehearse import batch_without_values, step
from equimod.models.settings import METHOD_NAMES
from equimod.pipelines import ops
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import POLICIES
from equimod.train.distributed import DistInfo, sync_batchnorm
from equimod.train.run import build_train_state

META = torch.device("meta")
RANKS = 8  # of the group that batch norm pretends to reach
_MAKES = ("tensor", "as_tensor", "new_tensor")  # a tensor from numbers of the host
_READS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
_SHOWN = 3  # places of a finding


class _Watch(TorchFunctionMode):
    """Notes calls that would wait if `device` were a GPU: reads of its tensors, and uploads that block."""

    def __init__(self, device: str, places: Counter[str]) -> None:
        super().__init__()
        self._device, self._places = device, places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        here = isinstance(first, Tensor) and first.device.type == self._device
        if name in _READS:
            waits = here
        elif name == "__getitem__":
            waits = here and isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        elif name in ("to", *_MAKES):
            moved = isinstance(out, Tensor) and out.device.type == self._device and self._device != "cpu"
            waits = moved and not (name == "to" and (here or (kwargs or {}).get("non_blocking")))
        else:
            waits = False
        if waits:
            self._places[_caller()] += 1
        return out


def _caller() -> str:
    """The innermost line on the stack that is not torch's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("torch"):
        frame = frame.f_back
    return _place(frame.f_code.co_filename, frame.f_lineno)


def _place(file: str, line: int) -> str:
    path = Path(file)
    return f"{path.parent.name}/{path.name}:{line}"


@contextmanager
def watched(device: torch.device) -> Iterator[Counter[str]]:
    """How often each line of code waits for `device` inside: on a GPU in all threads, elsewhere in this one.

    On "meta" the first line that cannot go on without a value ends the block, and counts.
    """
    places: Counter[str] = Counter()
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places.update(_place(w.filename, w.lineno) for w in heard if "called a synchronizing" in str(w.message))
        return
    with _Watch(device.type, places):
        try:
            yield places
        except (RuntimeError, NotImplementedError) as error:
            if device.type != "meta" or "meta" not in str(error):
                raise
            places[str(error).partition("\n")[0]] += 1


def no_wait(name: str, device: torch.device, work: Callable[[], object]) -> Finding:
    """Whether `work` waits for `device`, and where."""
    with watched(device) as places:
        work()
    return demand(name, not places, places.total(), "waits", _told(places))


def _told(places: Counter[str]) -> str:
    most = [f"{count} at {place}" for place, count in places.most_common(_SHOWN)]
    return ", ".join(most) + (f" and {len(places) - _SHOWN} more places" if len(places) > _SHOWN else "")


def run(job: Job) -> Iterator[Finding]:
    """Operators, a batch of the pipeline, a step of every method, and batch norm over ranks."""
    device = job.device if job.full else META
    for name in ("simclr_imagenet", "byol_imagenet"):
        yield no_wait(f"operators of x, {name}", device, _center(name, device))
        yield no_wait(f"operators of the views, {name}", device, _views(name, device))
    yield _pipeline(job)
    for method in METHOD_NAMES:
        for equimod in (False, True) if method != "none" else (True,):
            yield _step(job, method, equimod, device)
    yield from _norms(device)


def _center(name: str, device: torch.device) -> Callable[[], object]:
    policy = POLICIES[name]
    images = crops(16, policy.size).to(device)
    return lambda: ops.apply_center(images, policy.x)


def _views(name: str, device: torch.device) -> Callable[[], object]:
    policy, n = POLICIES[name], 16
    images = crops(n, policy.size).to(device)
    params = drawn(policy, n)
    return lambda: [ops.apply(images, p, view) for p, view in zip(params, policy.views, strict=True)]


def _pipeline(job: Job) -> Finding:
    pipeline = build_pipeline(
        DrawnRecords(64, (32, 32), raw=True),
        POLICIES["simclr_cifar10"],
        batch_size=16,
        seed=0,
        device=job.device,
        workers=2,
    )
    return no_wait("batches of a pipeline, in all threads", job.device, lambda: list(pipeline.epoch(0)))


def _step(job: Job, method: Any, equimod: bool, device: torch.device) -> Finding:
    config = replace(config_of(job, method, equimod), batch_size=job.sized(16, 4))
    here = replace(alone(job), device=device)
    state = build_train_state(config, Photos(), 1000, here)
    batch = random_batch(config, device) if job.full else batch_without_values(config, config.batch_size, device)
    step(state, batch)  # with momenta that are there
    return no_wait(f"a step, {config.title}", device, lambda: step(state, batch))


def _norms(device: torch.device) -> Iterator[Finding]:
    """Forward and backward pass of each kind of batch norm, over a group of ranks that is not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    try:
        for kind, shape in ((nn.BatchNorm2d, (8, 16, 4, 4)), (nn.BatchNorm1d, (8, 16))):
            norm = nn.Sequential(kind(16)).to(device)
            sync_batchnorm(norm, DistInfo(0, 0, RANKS, device))
            images = torch.randn(shape, device=device, requires_grad=True)

            def both(norm: nn.Module = norm, images: Tensor = images) -> None:
                norm(images).sum().backward()

            yield no_wait(f"{kind.__name__} over {RANKS} ranks, forward and backward", device, both)
    finally:
        dist.destroy_process_group()
