"""Which GPU holds each recipe, without a GPU: `python benchmarks/gpu_memory.py`.

The trainer's own step runs on tensors without values (FakeTensorMode) while the memory of all that is alive is summed:
parameters, momenta, gradients, activations, and all that the pipeline holds beside a step. What CUDA, NCCL, cuDNN and
the allocator take above that is reckoned, not counted.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import tyro
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from equimod.benchmarks.rehearse import Photos, batch_without_values, step
from equimod.benchmarks.result import present
from equimod.models import losses
from equimod.models.encoder import require_arch
from equimod.pipelines.prefetch import GPUMemory
from equimod.train.command import run_command
from equimod.train.config import RECIPES, Config, read_recipe
from equimod.train.distributed import DistInfo
from equimod.train.evaluation.table import Table
from equimod.train.loop import image_dtype
from equimod.train.run import build_train_state

CPU = torch.device("cpu")
CARDS = (12, 16, 24, 32, 40, 48, 80, 141)  # GiB, of GPUs in use
CHUNK = 128  # images that go through the encoder at once: the paper's share of one of 32 GPUs


@dataclass(frozen=True)
class Arguments:
    """Which GPU holds each recipe for ImageNet on 32, 8 and 1 of them, and each for CIFAR-10 on one."""

    output: Path | None = None
    """JSON file for the result."""


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that are alive, of those made inside and those given to `add`, and the most there were.

    torch's MemTracker finds the same where it works: not with a target network, nor with several chunks (torch 2.14).
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count these as long as they live."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = None
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, count: int) -> None:
        self.now -= count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.add(t for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


def pipeline_bytes(config: Config, samples: int) -> int:
    """What the pipeline of a rank with so many samples a batch holds on its GPU while it makes one beside a step.

    Its buffers, the pixels of that batch before the operators, and one of its views between the passes of a blur.
    Tables and sums are left out: kilobytes.
    """
    policy = config.augment
    sets, values = len(policy.views) + config.equimod, 3 * policy.size**2
    itemsize = image_dtype(config.precision).itemsize
    buffers, blurred = GPUMemory.ahead + 1, any(view.blur for view in policy.views)
    return samples * values * ((buffers * sets + blurred) * itemsize + sets)


def peak_bytes(config: Config, ranks: int) -> int:
    """The most bytes that a step of one of `ranks` ranks has in tensors on its device.

    Embeddings gathered from the other ranks are left out: megabytes.
    """
    config = replace(config, batch_size=config.batch_size // ranks)
    state = build_train_state(config, Photos(), 312, DistInfo(0, 0, 1, CPU))
    as_on_gpu = patch.dict(losses.PRODUCTS, cpu=losses.PRODUCTS["cuda"])
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_gpu:
        few = batch_without_values(config, 2, CPU)
        step(replace(state, grad_cache=replace(state.grad_cache, chunks=1)), few)  # so that there are momenta
        batch = batch_without_values(config, config.batch_size, CPU)
        rest = pipeline_bytes(config, config.batch_size) - batch.images.nbytes
        loaded = [batch.images, torch.empty(rest, dtype=torch.uint8)]
        buckets = [torch.empty_like(p) for p in state.model.parameters() if p.requires_grad and ranks > 1]  # of DDP
        memory = LiveMemory()
        memory.add([*state.model.parameters(), *state.model.buffers(), *loaded, *buckets])
        memory.add(tree_leaves([list(buffers.values()) for buffers in state.optimizer.state.values()]))
        with memory:
            step(state, batch)
    return memory.peak


def card(peak: int) -> int | None:
    """The smallest of CARDS that holds a peak of bytes; a tenth and 1.5 GiB are left to CUDA and the allocator."""
    return next((size for size in CARDS if peak * 1.1 + 1.5 * 2**30 <= size * 2**30), None)


def plans(name: str, config: Config) -> list[tuple[Config, int]]:
    """The recipe with its chunks, and the number of ranks, for each of the machines that it is reckoned for."""
    if not name.endswith("imagenet"):
        return [(config, 1)]
    return [(replace(config, grad_cache=config.batch_size // ranks // CHUNK), ranks) for ranks in (32, 8, 1)]


def _recipes() -> list[tuple[str, Config]]:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem.endswith(("imagenet", "cifar10")))
    recipes = [(name, read_recipe(RECIPES / f"{name}.yaml").on_device("cuda")) for name in names]
    # EquiMod alone, for which --equimod has to be given beside the recipe.
    return [(name, replace(recipe, equimod=recipe.equimod or recipe.method == "none")) for name, recipe in recipes]


def rows(result: dict[str, Any]) -> list[Table]:
    """The table of a result: a row a recipe, a column a number of GPUs."""
    cells = {
        (row["recipe"], row["ranks"]): f"{row['peak_bytes'] / 2**30:.1f} ({row['card_gib'] or 'none'})"
        for row in result["rows"]
    }
    key = "grad_cache" if "grad_cache" in result["rows"][0] else "accumulate"  # its name in older results
    chunks = {row["ranks"]: row[key] for row in result["rows"] if row["recipe"].endswith("imagenet")}
    columns = [f"{n} GPU{'s' * (n > 1)}{f', `--grad-cache {k}`' * (k > 1)}" for n, k in chunks.items()]
    recipes = {recipe: [f"`{recipe}.yaml`", *(cells.get((recipe, n), "–") for n in chunks)] for recipe, _ in cells}
    return [Table(["recipe", *columns], list(recipes.values()))]


def caption(result: dict[str, Any]) -> str:
    """What stands under the table."""
    return (
        "GiB at the peak of a step, and in brackets the smallest of the usual cards that holds it with a tenth and 1.5 "
        "GiB left for CUDA and the allocator. A recipe for CIFAR-10 runs on one GPU without `--grad-cache`."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        arguments = tyro.cli(Arguments, args=given, prog="gpu_memory.py", description=__doc__)
        recipes = _recipes()
        for _, recipe in recipes:
            require_arch(recipe.encoder)
        found = [_measured(name, config, ranks) for name, recipe in recipes for config, ranks in plans(name, recipe)]
        present({"benchmark": "gpu_memory", "rows": found}, rows, "gpu_memory.py", given, arguments.output)

    return run_command(run, again="run the same command again")


def _measured(name: str, config: Config, ranks: int) -> dict[str, Any]:
    began = time.perf_counter()
    peak = peak_bytes(config, ranks)
    print(f"{name} on {ranks} GPUs: {peak / 2**30:.1f} GiB", file=sys.stderr)
    return {
        "recipe": name,
        "precision": config.precision,
        "ranks": ranks,
        "images_a_rank": config.batch_size // ranks,
        "grad_cache": config.grad_cache,
        "peak_bytes": peak,
        "card_gib": card(peak),
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    sys.exit(main())
