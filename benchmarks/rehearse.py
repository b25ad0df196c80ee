"""Rehearse a step at the paper's size without a GPU: `python benchmarks/rehearse.py`, for all methods.

The trainer's own step runs as rank 0 of many on torch's "meta" device, where tensors have shapes and no values, with a
process group that only pretends. A wait for the device (`.item()`, a branch on a tensor, a copy to the host) and a
tensor left on another device raise there. Counted are floating point operations and the bytes that a rank hands to
collectives, those of batch norm over the ranks among them. Not rehearsed: autocast. Memory is counted by gpu_memory.py.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import tyro
from numpy.typing import NDArray
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from equimod.benchmarks.result import present
from equimod.models.settings import METHOD_NAMES, MethodName
from equimod.pipelines.batch import Batch
from equimod.pipelines.errors import UsageError
from equimod.pipelines.params import ParamLayout
from equimod.train.command import refused_settings, run_command
from equimod.train.config import Config, default_recipe, read_recipe
from equimod.train.distributed import DistInfo
from equimod.train.evaluation.table import Table
from equimod.train.loop import TrainState, image_dtype, train_step
from equimod.train.run import build_train_state

META = torch.device("meta")


@dataclass(frozen=True)
class Arguments:
    """Rehearse every method, with EquiMod and without."""

    ranks: int = 32
    """Ranks that share the batch."""
    batch_size: int = 4096
    """Images of the global batch."""
    grad_cache: int = 1
    """Chunks that a rank's images go through the encoder in."""
    output: Path | None = None
    """JSON file for the result."""


@dataclass
class Photos:
    """The part of ImageNet's records that a model is built from: a `Contents`."""

    size: NDArray[np.int32] = field(default_factory=lambda: np.array([[500, 375]], dtype=np.int32))
    classes: list[str] = field(default_factory=lambda: ["class"] * 1000)


class Collectives(TorchDispatchMode):
    """Bytes that are handed to collectives inside, and how often, by kind ("allreduce", "allgather")."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind = "allgather" if "allgather" in func.__name__ else func.__name__.partition(".")[0].strip("_")
            given = args[1] if kind == "allgather" else args[0]
            self.calls[kind] += 1
            self.bytes[kind] += sum(
                t.nbytes for t in torch.utils._pytree.tree_leaves(given) if isinstance(t, torch.Tensor)
            )
        return func(*args, **(kwargs or {}))


class Norms:
    """How often the batch norms of a model compute statistics, and over how many channels in all.

    Over several ranks each of them gathers mean and variance, and sums two gradients where there is a backward pass:
    a part of what `Collectives` counts.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls = self.channels = self.backward_calls = self.backward_channels = 0
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_hook(self._count)

    def _count(self, norm: nn.modules.batchnorm._BatchNorm, _: object, output: torch.Tensor) -> None:
        if norm.training:
            self.calls += 1
            self.channels += norm.num_features
            if output.requires_grad:
                output.register_hook(lambda _: self._count_backward(norm.num_features))

    def _count_backward(self, channels: int) -> None:
        self.backward_calls += 1
        self.backward_channels += channels


@contextmanager
def pretended_ranks(ranks: int) -> Iterator[DistInfo]:
    """Rank 0 of `ranks`, of which there is no other; inside, collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield DistInfo(0, 0, ranks, META)
    finally:
        dist.destroy_process_group()


def paper_config(method: MethodName, equimod: bool, batch_size: int, grad_cache: int) -> Config:
    """The recipe for ImageNet, or for a method without one SimCLR's augmentation and encoder."""
    path = default_recipe(method, "imagenet", equimod) or default_recipe("simclr", "imagenet", equimod)
    assert path is not None
    return replace(
        read_recipe(path),
        method=method,
        equimod=equimod,
        data=(Path("imagenet"),),
        batch_size=batch_size,
        grad_cache=grad_cache,
        precision="fp32",
    )


def rehearse(config: Config, dist_info: DistInfo) -> dict[str, Any]:
    """Take two steps, the first of which is counted. Raises what torch raises where the device would be waited for."""
    began = time.perf_counter()
    state = build_train_state(config, Photos(), 312, dist_info)
    buckets: list[int] = []
    if isinstance(state.grad_cache.parallel, nn.parallel.DistributedDataParallel):
        # A lambda, since DDP compares annotations by identity and finds strings in this file.
        state.grad_cache.parallel.register_comm_hook(buckets, lambda sent, bucket: _averaged(sent, bucket))
    batch = batch_without_values(config, config.batch_size // dist_info.world_size, META)
    norms = Norms(state.model)
    with FlopCounterMode(display=False) as flops, Collectives() as collectives:
        step(state, batch)
    batchnorm = vars(norms).copy()
    # Once more, with momenta that are there; without DDP, which regroups gradients now and reads values for it.
    step(replace(state, grad_cache=replace(state.grad_cache, parallel=state.model)), batch)
    return {
        "method": config.method,
        "equimod": config.equimod,
        "images_a_rank": len(batch),
        "tflop": flops.get_total_flops() / 1e12,
        "bytes": dict(collectives.bytes),
        "calls": dict(collectives.calls),
        "buckets": len(buckets),
        "batchnorm": batchnorm,
        "parameter_bytes": sum(p.nbytes for p in state.model.parameters() if p.requires_grad),
        "seconds": time.perf_counter() - began,
    }


def _averaged(sent: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    sent.append(bucket.buffer().nbytes)
    # The pretended group's own future has no value, which DDP's default hook asks for.
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def step(state: TrainState, batch: Batch) -> None:
    """The trainer's step in the middle of a run."""
    state.model.before_step(0.5)
    train_step(state, batch, 1.0)


def batch_without_values(config: Config, n: int, device: torch.device) -> Batch:
    """A batch of `n` samples with all that a step reads, for a device or a mode that keeps no values."""
    policy = config.augment
    encoded = len(ParamLayout.shared(policy))

    sets, dtype = len(policy.views) + config.equimod, image_dtype(config.precision)
    images = torch.empty(sets * n, policy.size, policy.size, 3, dtype=dtype, device=device)
    params: Any = (None,) * len(policy.views)  # which a step does not read
    encodings = tuple(torch.empty(n, encoded, device=device) for _ in policy.views)
    label = torch.empty(n, dtype=torch.int64, device=device)
    return Batch(images.permute(0, 3, 1, 2), params, encodings, label, torch.arange(n))


def rows(result: dict[str, Any]) -> list[Table]:
    """The table of a result."""
    columns = ["method", "TFLOP a rank", "gradients, MB", "batch norm, MB", "gathered embeddings, MB", "other sums, MB"]
    found = []
    for row in result["rows"]:
        gathered, summed = embedding_bytes(row)
        of_norms = row["bytes"]["allgather"] - gathered + 8 * row["batchnorm"]["backward_channels"]
        sent = (row["parameter_bytes"], of_norms, gathered, summed)
        title = row["method"] + (" + EquiMod" if row["equimod"] else "")
        found.append([title, f"{row['tflop']:.2f}", *(f"{count / 1e6:.2f}" for count in sent)])
    return [Table(columns, found)]


def embedding_bytes(rehearsed: dict[str, Any]) -> tuple[int, int]:
    """What a rehearsed step hands to gathers and to sums, beside what batch norms and gradients do."""
    counted, norms = rehearsed["bytes"], rehearsed["batchnorm"]
    summed: int = counted["allreduce"] - rehearsed["parameter_bytes"] - 8 * norms["backward_channels"]
    return counted["allgather"] - 8 * norms["channels"], summed


def caption(result: dict[str, Any]) -> str:
    """What stands under the table."""
    settings = result["settings"]
    return (
        f"ResNet-50, 224 pixels, global batch of {settings['batch_size']:,}, a rank of {settings['ranks']}; bytes are "
        "those that the rank hands over, float32."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        arguments = tyro.cli(Arguments, args=given, prog="rehearse.py", description=__doc__)
        ranks, batch_size = arguments.ranks, arguments.batch_size
        if ranks < 2 or batch_size % ranks:
            raise UsageError(f"ranks={ranks} must be 2 or more and divide batch_size={batch_size}")
        with refused_settings(), pretended_ranks(ranks) as dist_info:
            found = [
                rehearse(paper_config(method, equimod, batch_size, arguments.grad_cache), dist_info)
                for method in METHOD_NAMES
                for equimod in (False, True)
                if equimod or method != "none"
            ]
        settings = {name: getattr(arguments, name) for name in ("ranks", "batch_size", "grad_cache")}
        present(
            {"benchmark": "rehearse", "settings": settings, "rows": found}, rows, "rehearse.py", given, arguments.output
        )

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
