"""What a global batch of 4096 costs one rank: python benchmarks/large_batch.py grad-cache|loss OPTIONS.

Times are medians over interleaved rounds, ratios medians of the ratios within a round. Memory is the largest resident
memory of the contender's own process, with Python and torch in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from equimod.benchmarks.benchmark import MEMORY, Benchmark, Pair, run_benchmark
from equimod.benchmarks.compare_training import Step
from equimod.benchmarks.measure import Workload
from equimod.pipelines.errors import UsageError
from equimod.train.evaluation.table import Table


class _Cost(Benchmark):
    """A benchmark whose contenders are compared with one of them, in time and memory."""

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """See Benchmark."""
        rows = []
        against = next(iter(result["ratios"])).partition("/")[2]
        for name, measured in result["contenders"].items():
            times = result["ratios"].get(f"{name}/{against}")
            cost = f"{1 / times['median']:.3f}" if times else "1" if name == against else "–"
            rows.append([name, cost, f"{measured['peak_bytes'] / 2**20:,.0f}"])
        return [Table(["what", f"time against {against}", MEMORY], rows)]

    @classmethod
    def caption(cls, result: dict[str, Any]) -> str:
        """See Benchmark."""
        batch = result["settings"].get("batch") or result["settings"]["batch_size"]
        return (
            f"Global batch of {batch:,}, {len(result['rounds'])} interleaved rounds. Memory is that of the whole "
            "process, Python and torch included."
        )


@dataclass(frozen=True)
class LossSettings:
    batch: int
    dim: int


@dataclass(frozen=True, kw_only=True)
class Chunks(_Cost, Step):
    """The trainer's own step with the batch in several numbers of chunks, and how far their gradients lie apart.

    Example: python benchmarks/large_batch.py grad-cache -- --method simclr --equimod --batch-size 4096
    """

    name: ClassVar[str] = "grad_cache"

    chunks: tuple[int, ...] = (1, 16)
    """Values of --grad-cache to compare; the others are compared with the first."""
    batches: int = 1
    """Steps a round."""
    rounds: int = 2
    """Turns that each contender takes, after one to warm up."""

    def check(self) -> None:
        """Raises UsageError."""
        super().check()
        for chunks in self.chunks:
            replace(self, trainer=_in_chunks(self.trainer, chunks), chunks=()).check()

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """See Benchmark."""
        _, settings, more = super().plan()
        return {f"{n} chunk{'s' if n > 1 else ''}": partial(_step_in_chunks, n) for n in self.chunks}, settings, more

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """Every number of chunks against the first."""
        return [(name, names[0]) for name in names[1:]]

    def measure(self) -> dict[str, Any]:
        """See Benchmark; with how far the encoder's gradient at the start of a training lies from that of the first
        number of chunks, of its length, in float32."""
        from equimod.benchmarks.trainers import encoder_gradient

        result = super().measure()
        _, settings, _ = self.plan()
        arguments = (*settings.arguments, "--precision", "fp32")
        gradients = [encoder_gradient(replace(settings, arguments=_in_chunks(arguments, n))) for n in self.chunks]
        apart = [float((gradient - gradients[0]).norm() / gradients[0].norm()) for gradient in gradients]
        result["gradients_apart"] = dict(zip(result["contenders"], apart, strict=True))
        return result

    @classmethod
    def rows(cls, result: dict[str, Any]) -> list[Table]:
        """See Benchmark."""
        (table,) = super().rows(result)
        apart = result["gradients_apart"]
        cells = [[*row, f"{apart[row[0]]:.2f}"] for row in table.rows]
        return [Table([*table.columns, "distance of the encoder's gradient, of its length"], cells)]


def _in_chunks(trainer: tuple[str, ...], chunks: int) -> tuple[str, ...]:
    return (*trainer, "--grad-cache", str(chunks))


def _step_in_chunks(chunks: int, settings: Any) -> Workload:
    from equimod.benchmarks.trainers import step

    return step(replace(settings, arguments=_in_chunks(settings.arguments, chunks)))


@dataclass(frozen=True, kw_only=True)
class Loss(_Cost):
    """NT-Xent of one rank, forward and backward: its own rows against all columns in blocks, and the full matrix.

    The columns that other ranks would send are drawn. An image a second is one of the global batch.
    """

    name: ClassVar[str] = "loss"

    batch: int = 4096
    """Images of the global batch."""
    dim: int = 128
    """Dimension of the embeddings."""
    ranks: tuple[int, ...] = (1, 8, 32)
    """Numbers of ranks that share the batch."""

    def check(self) -> None:
        """Raises UsageError."""
        super().check()
        self.at_least_one("batch", "dim")
        for ranks in self.ranks:
            if ranks < 1 or self.batch % ranks:
                raise UsageError(f"ranks={ranks} does not divide batch={self.batch}; give divisors")

    def plan(self) -> tuple[dict[str, Callable[[Any], Workload]], Any, dict[str, Any]]:
        """See Benchmark."""
        shares = {f"share of {n} rank{'s' if n > 1 else ''}": partial(_share, n) for n in self.ranks}
        return {"full matrix": _full, "embeddings alone": _nothing, **shares}, LossSettings(self.batch, self.dim), {}

    def pairs(self, names: Sequence[str]) -> list[Pair]:
        """Every share against the full matrix."""
        return [(name, "full matrix") for name in names if name.startswith("share")]


def _loss(settings: LossSettings, loss: Callable[[Any], Any]) -> Workload:
    """Forward and backward of `loss`, of unit vectors (2 · batch, dim)."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(2 * settings.batch, settings.dim, generator=generator), dim=1).requires_grad_()

    def load(epoch: int) -> Iterator[int]:
        z.grad = None
        loss(z).backward()
        yield settings.batch

    return load


def _full(settings: LossSettings) -> Workload:
    import torch
    import torch.nn.functional as F

    def loss(z: Any) -> Any:
        similarities = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return F.cross_entropy(similarities, torch.arange(len(z)).roll(settings.batch))

    return _loss(settings, loss)


def _nothing(settings: LossSettings) -> Workload:
    return _loss(settings, lambda z: z.sum())


def _share(ranks: int, settings: LossSettings) -> Workload:
    import torch

    from equimod.models.losses import log_sum_exp

    own = torch.arange(2 * settings.batch // ranks)

    def loss(z: Any) -> Any:
        rows = z[: len(own)] / 0.2
        sibling = z[: len(own)].roll(len(own) // 2, 0)
        return (log_sum_exp(rows, z, (own,)) - (rows * sibling).sum(1)).mean()

    return _loss(settings, loss)


COMMANDS: dict[str, Callable[..., Benchmark]] = {command.name.replace("_", "-"): command for command in (Chunks, Loss)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    return run_benchmark(COMMANDS, "large_batch.py", __doc__, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
