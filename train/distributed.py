"""Process group, collectives and data-parallel wrappers: all of the training that communicates with other ranks.

A run alone has no process group, and everything here is then the identity. With torchrun, tensors go over nccl
or gloo by their device; agreements between the ranks always go over gloo, on the host, so that asking for one
never waits for the GPU. The nccl branches have not run on GPUs yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.modules.batchnorm import _BatchNorm

from equimod.models.batchnorm import SyncBatchNorm
from equimod.pipelines.errors import EquimodError

_TIMEOUT = timedelta(minutes=10)  # of one collective: longer than the slowest evaluation or save on rank 0
_TORCHRUN = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}  # its environment, and the values of a process alone

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class RankLostError(EquimodError):
    """A collective failed because another rank is gone."""


@dataclass(frozen=True)
class DistInfo:
    """This process among the ranks of the run."""

    rank: int
    local_rank: int  # among the ranks of this node
    world_size: int
    device: torch.device


@contextmanager
def process_group(device: str = "auto") -> Iterator[DistInfo]:
    """This process among the ranks that torchrun describes in the environment, or alone; the group is up inside.

    `device`: "cpu", "cuda", or "auto" for cuda where there is a GPU. ValueError where a rank has no GPU to itself, and
    where torchrun would restart lost ranks in vain.
    """
    rank, local_rank, size = (int(os.environ.get(name, alone)) for name, alone in _TORCHRUN.items())
    dist_info = DistInfo(rank, local_rank, size, training_device(device, local_rank))
    if size == 1:
        yield dist_info
        return
    _refuse_restarts_that_hang()
    backend = "gloo"
    if dist_info.device.type == "cuda":
        torch.cuda.set_device(dist_info.device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=_TIMEOUT)
        yield dist_info
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            raise RankLostError("another rank ended or does not answer; its own message says why") from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _refuse_restarts_that_hang() -> None:
    """ValueError where torchrun restarts lost ranks, but gives them the store that the first ones met in.

    torch 2.14 does so by default. What the first ranks wrote is still there, so the new ones try to reach those and
    wait until the timeout, in about every second restart.
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            f"--max-restarts {restarts} of torchrun works only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its "
            "environment: without it restarted ranks may wait for the lost ones"
        )


def training_device(device: str, local_rank: int = 0) -> torch.device:
    """What `device` of `process_group` stands for on this machine. ValueError where a rank has no GPU to itself."""
    gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and gpus == 0):
        return torch.device("cpu")
    if device not in ("auto", "cuda"):
        raise ValueError(f"device={device!r} is unknown; choose auto, cpu or cuda")
    if local_rank >= gpus:
        raise ValueError(
            f"device={device}, but local rank {local_rank} finds {gpus} GPUs: lower --nproc-per-node or give device=cpu"
        )
    return torch.device("cuda", local_rank)


def any_rank(flag: bool, dist_info: DistInfo) -> bool:
    """Whether `flag` is true on any rank; all ranks must ask, and all get the same answer."""
    if dist_info.world_size == 1:
        return flag
    flags = torch.tensor(flag, dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def barrier(dist_info: DistInfo) -> None:
    """Wait until all ranks are here (on the host: work queued on a GPU may still be running)."""
    any_rank(False, dist_info)


def mean_over_ranks(values: dict[str, Tensor], dist_info: DistInfo) -> dict[str, Tensor]:
    """The mean over the ranks of tensors of one shape on the training device: same names, same device, detached."""
    if dist_info.world_size == 1 or not values:
        return {name: value.detach() for name, value in values.items()}
    stacked = torch.stack([value.detach() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, (stacked / dist_info.world_size).unbind(), strict=True))


def of_first_rank(make: Callable[[], T], dist_info: DistInfo) -> T:
    """What `make` returns on the first rank, on every rank; the EquimodError that it raises there, too."""
    if dist_info.world_size == 1:
        return make()
    found: list[Any] = [None]
    if dist_info.rank == 0:
        try:
            found = [make()]
        except EquimodError as error:
            found = [error]
    dist.broadcast_object_list(found, device=torch.device("cpu"))
    if isinstance(found[0], EquimodError):
        raise found[0]
    made: T = found[0]
    return made


def first_on_each_node(make: Callable[[], T], dist_info: DistInfo) -> T:
    """What `make` returns, called on the first rank of each node before it is on the others: what it keeps for itself
    on a disk spares those the work."""
    if dist_info.local_rank:
        barrier(dist_info)
        return make()
    try:
        return make()
    finally:
        barrier(dist_info)  # the others then raise the same


def assert_same_on_all_ranks(value: str, what: str, dist_info: DistInfo) -> None:
    """ValueError, on every rank, if `value` is not the same everywhere.

    `what` names it in the message, which gives the first line that differs.
    """
    if dist_info.world_size == 1:
        return
    values: list[Any] = [None] * dist_info.world_size
    dist.all_gather_object(values, value)
    for rank, other in enumerate(values):
        for first, second in zip_longest(values[0].splitlines(), other.splitlines(), fillvalue=""):
            if first != second:
                raise ValueError(f"{what} differs between the ranks: {first!r} on rank 0, {second!r} on rank {rank}")


def data_parallel(module: nn.Module, dist_info: DistInfo, gradients: Literal["fp32", "bf16"] = "fp32") -> nn.Module:
    """`module` with gradients averaged over the ranks, its parameters and buffers those of rank 0; alone, itself.

    Ranks send `gradients` as they are, or rounded to bf16. They have a process group of their own, so that batch norms
    and losses need not wait until a bucket of gradients is through. Buffers are not sent around again: `sync_batchnorm`
    keeps them the same on all ranks.
    """
    if dist_info.world_size == 1:
        return module
    group, kind = dist.new_group(timeout=_TIMEOUT), dist_info.device.type
    parallel = nn.parallel.DistributedDataParallel(
        module,
        device_ids=[dist_info.device] if kind == "cuda" else None,
        process_group=group,
        gradient_as_bucket_view=True,
        init_sync=kind != "meta",  # where there are no values to send
    )
    if kind == "cpu":
        sent = torch.bfloat16 if gradients == "bf16" else None
        # A lambda, since DDP compares annotations by identity and finds strings in this file.
        parallel.register_comm_hook(group, lambda group, bucket: _average_one_by_one(group, sent, bucket))
    elif kind == "cuda" and gradients == "bf16":
        parallel.register_comm_hook(group, bf16_compress_hook)
    # Set afterwards: the constructor's argument of this name would leave out sending them once, and is deprecated.
    parallel.broadcast_buffers = False
    return parallel


def _average_one_by_one(
    group: dist.ProcessGroup, sent: torch.dtype | None, bucket: dist.GradBucket
) -> torch.futures.Future[Tensor]:
    """Average every gradient of a bucket by itself: its value then does not depend on what else is in the bucket.

    DDP regroups them after the first step. Where a value stands in the buffer decides in which order gloo adds three
    or more ranks, so a resumed run would otherwise differ in the last bit from one that never stopped.
    """
    gradients = bucket.gradients()
    messages = [gradient.div_(group.size()).to(sent or gradient.dtype) for gradient in gradients]
    futures = [dist.all_reduce(message, group=group, async_op=True).get_future() for message in messages]

    def received(done: torch.futures.Future[list[torch.futures.Future[Any]]]) -> Tensor:
        for future, gradient, message in zip(done.value(), gradients, messages, strict=True):
            future.value()  # raises where another rank is gone
            gradient.copy_(message)
        return bucket.buffer()

    return torch.futures.collect_all(futures).then(received)


def sync_batchnorm(module: M, dist_info: DistInfo, kernel: Literal["torch", "apex"] = "torch") -> M:
    """`module` with every batch norm below it computing over the batches of all ranks; alone, as it is.

    Changes `module` in place and keeps its state-dict keys. Call before `data_parallel`. `kernel` "apex" takes apex's
    for images; ValueError where it is not installed or cannot reach all ranks.
    """
    if dist_info.world_size == 1:
        return module
    if kernel == "apex":
        _apex_batchnorm(module, dist_info)
    for parent, name, norm in _batchnorms(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        setattr(parent, name, SyncBatchNorm(norm))
    return module


def _batchnorms(module: nn.Module, kinds: tuple[type[_BatchNorm], ...]) -> list[tuple[nn.Module, str, Any]]:
    """Every batch norm of these kinds, with the module that holds it and its name there."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, kinds)
    ]


def _apex_batchnorm(module: nn.Module, dist_info: DistInfo) -> None:
    """Replace the batch norms of images by apex's, which speak over the memory of one node. Not run on a GPU yet."""
    if dist_info.device.type != "cuda":
        raise ValueError(
            f"system.batchnorm=apex runs on GPUs, not on {dist_info.device.type}; give --system.batchnorm torch"
        )
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", dist_info.world_size))
    if of_node != dist_info.world_size:
        raise ValueError(
            f"system.batchnorm=apex reaches the {of_node} ranks of a node, not all {dist_info.world_size}; "
            "give --system.batchnorm torch"
        )
    try:
        from apex.contrib.cudnn_gbn import GroupBatchNorm2d
    except ImportError as error:
        raise ValueError(
            "system.batchnorm=apex needs apex with cudnn_gbn, which is compiled from source: "
            "git clone --recursive https://github.com/NVIDIA/apex && cd apex && "
            "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_CUDNN_GBN=1 APEX_PEER_MEMORY=1 pip install --no-build-isolation ."
        ) from error
    for parent, name, norm in _batchnorms(module, (nn.BatchNorm2d,)):
        if list(norm.children()):  # an activation, which apex's would leave out
            continue
        grouped = GroupBatchNorm2d(norm.num_features, dist_info.world_size, norm.eps, norm.momentum)
        grouped._parameters, grouped._buffers = norm._parameters, norm._buffers
        setattr(parent, name, grouped.train(norm.training))
