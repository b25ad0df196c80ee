"""Scale on paper: what a step should take on 1 to 1,024 GPUs: `python benchmarks/scaling.py`.

Operations and the bytes of every collective come from rehearsals of the trainer's own step (rehearse.py); time comes
from the arguments, none of which is measured on a GPU by this project. An all-reduce takes the faster of NCCL's ring
and tree, an all-gather the ring. Gradients travel behind the backward pass (two thirds of a step) but for the last
bucket; nothing else hides.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from equimod.benchmarks.gpu_memory import CHUNK
from equimod.benchmarks.rehearse import embedding_bytes, paper_config, pretended_ranks, rehearse
from equimod.benchmarks.result import present
from equimod.models.settings import MethodName
from equimod.train.command import refused_settings, run_command
from equimod.train.evaluation.table import Table

BUCKET = 25 * 2**20  # bytes of gradients that DDP sends at once
IMAGES = 1_281_167  # of ImageNet's training set


@dataclass(frozen=True)
class Device:
    """One GPU. The defaults reckon an A100."""

    images_per_s: float | None = None
    """Images a step alone trains a second, measured; none: reckoned from the two below."""
    tflops: float = 312
    """Peak in the precision of the training, TFLOP/s."""
    utilization: float = 0.25
    """Share of the peak that a step reaches."""
    least_ms: float = 15
    """A step with hardly any images: the time that launching its kernels takes."""
    chunk: int = CHUNK
    """Images that fit at once; more go through in chunks (--grad-cache), forward twice."""


@dataclass(frozen=True)
class Network:
    """What lies between the GPUs. The defaults are nodes of 8 with NVLink and an adapter of 200 Gbit/s."""

    gpus_a_node: int = 8
    """GPUs of a node."""
    inside_gb_s: float = 200
    """Bandwidth from GPU to GPU in a node, GB/s."""
    between_gb_s: float = 25
    """Bandwidth of all adapters of a node together, GB/s."""
    inside_us: float = 2
    """Latency of a hop in a node, microseconds."""
    between_us: float = 6
    """Latency of a hop between nodes, microseconds."""

    def all_reduce(self, count: int, ranks: int) -> float:
        """Seconds of a sum of `count` bytes over `ranks`, the faster of ring and tree."""
        nodes, inside, bandwidth = self._shape(ranks)
        ring = 2 * count * (ranks - 1) / ranks / bandwidth + 2 * self._around(ranks)
        hops = math.ceil(math.log2(nodes)) * self.between_us + (inside - 1) * self.inside_us
        tree = 2 * count * (ranks > 1) / bandwidth + 2 * hops * 1e-6
        return min(ring, tree)

    def all_gather(self, count: int, ranks: int) -> float:
        """Seconds until every one of `ranks` has the `count` bytes of every other."""
        return count * (ranks - 1) / self._shape(ranks)[2] + self._around(ranks)

    def _around(self, ranks: int) -> float:
        """Seconds of a message of nothing from the first rank to the last, past all others."""
        nodes = self._shape(ranks)[0]
        return ((ranks - nodes) * self.inside_us + (nodes - 1) * self.between_us) * 1e-6

    def _shape(self, ranks: int) -> tuple[int, int, float]:
        """Nodes, GPUs of each that are used, and bytes/s of the narrowest link."""
        nodes = math.ceil(ranks / self.gpus_a_node)
        bandwidth = self.inside_gb_s if nodes == 1 else min(self.inside_gb_s, self.between_gb_s)
        return nodes, min(ranks, self.gpus_a_node), bandwidth * 1e9


@dataclass(frozen=True)
class LoaderSpec:
    """What an image costs before it is on the GPU."""

    cpu_ms: float = 1.44
    """CPU-ms an image (x and two views); `throughput.py loader` measures it."""
    image_bytes: int = 108_000
    """Bytes of a record."""


@dataclass(frozen=True)
class Arguments:
    """Predict step time, efficiency, cores and reading of a node for 1 to 1,024 GPUs."""

    method: MethodName = "simclr"
    """Invariance method."""
    equimod: bool = True
    """With EquiMod beside it."""
    batch_size: int = 4096
    """Images of the global batch, whatever the number of GPUs."""
    device: Device = field(default_factory=Device)
    network: Network = field(default_factory=Network)
    loader: LoaderSpec = field(default_factory=LoaderSpec)
    output: Path | None = None
    """JSON file for the result."""


def predict(arguments: Arguments, ranks: int) -> dict[str, float]:
    """Times of a step on `ranks` GPUs, in seconds, and what follows from them."""
    device, network, loader = arguments.device, arguments.network, arguments.loader
    local = arguments.batch_size // ranks
    with pretended_ranks(ranks) as dist_info:
        counted = rehearse(paper_config(arguments.method, arguments.equimod, arguments.batch_size, 1), dist_info)
    alone = local / (device.images_per_s or device.tflops * device.utilization * local / counted["tflop"])
    again = 4 / 3 if local > device.chunk else 1.0
    compute = max(alone * again, device.least_ms / 1e3)
    gradients, norms, calls = counted["parameter_bytes"], counted["batchnorm"], counted["calls"]
    exposed = embeddings = statistics = 0.0
    if ranks > 1:
        gathered, summed = embedding_bytes(counted)
        last = network.all_reduce(min(gradients, BUCKET), ranks)
        exposed = max(last, network.all_reduce(gradients, ranks) - compute * 2 / 3)
        embeddings = _each(network.all_gather, gathered, calls["allgather"] - norms["calls"], ranks)
        sums = calls["allreduce"] - counted["buckets"] - norms["backward_calls"]
        embeddings += _each(network.all_reduce, summed, sums, ranks)
        statistics = _each(network.all_gather, 8 * norms["channels"], norms["calls"], ranks)
        statistics += _each(network.all_reduce, 8 * norms["backward_channels"], norms["backward_calls"], ranks)
    step = compute + exposed + embeddings + statistics
    rate = arguments.batch_size / step
    nodes = math.ceil(ranks / network.gpus_a_node)
    return {
        "ranks": ranks,
        "images_a_rank": local,
        "compute_s": compute,
        "gradients_s": exposed,
        "embeddings_s": embeddings,
        "statistics_s": statistics,
        "step_s": step,
        "images_per_s": rate,
        "efficiency": alone / step,
        "cores_a_node": rate / nodes * loader.cpu_ms / 1e3,
        "read_mb_s_a_node": rate / nodes * loader.image_bytes / 1e6,
        "hours_100_epochs": 100 * IMAGES / rate / 3600,
    }


def _each(collective: Callable[[int, int], float], count: int, calls: int, ranks: int) -> float:
    """Seconds of `calls` collectives that carry `count` bytes in all."""
    return calls * collective(count // calls, ranks) if calls else 0.0


def rows(result: dict[str, Any]) -> list[Table]:
    """The table of a result."""
    columns = ["GPUs", "images each", "step, ms", "gradients", "batch norm", "embeddings", "efficiency"]
    columns += ["hours for 100 epochs", "cores a node", "MB/s a node"]
    found = [
        [
            f"{row['ranks']:,}",
            f"{row['images_a_rank']:,}",
            f"{1e3 * row['step_s']:,.0f}",
            f"{1e3 * row['gradients_s']:.1f}",
            f"{1e3 * row['statistics_s']:.1f}",
            f"{1e3 * row['embeddings_s']:.2f}",
            f"{row['efficiency']:.2f}",
            f"{row['hours_100_epochs']:.1f}",
            f"{row['cores_a_node']:.1f}",
            f"{row['read_mb_s_a_node']:,.0f}",
        ]
        for row in result["rows"]
    ]
    return [Table(columns, found)]


def caption(result: dict[str, Any]) -> str:
    """What stands under the table."""
    return (
        "Nothing here is measured on a GPU. Columns three to six are milliseconds; gradients: what does not hide "
        "behind the backward pass."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        arguments = tyro.cli(Arguments, args=given, prog="scaling.py", description=__doc__)
        ranks = [2**k for k in range(11) if arguments.batch_size % 2**k == 0]
        with refused_settings():
            check(arguments)
            found = [predict(arguments, n) for n in ranks]
        settings = {**asdict(arguments), "output": str(arguments.output)}
        present(
            {"benchmark": "scaling", "settings": settings, "rows": found}, rows, "scaling.py", given, arguments.output
        )

    return run_command(run, again="run the same command again")


def check(arguments: Arguments) -> None:
    """ValueError for a number that cannot be."""
    for part in (arguments.device, arguments.network, arguments.loader):
        for name, value in asdict(part).items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}; give a number above 0")
    if arguments.batch_size < 2:
        raise ValueError(f"batch_size={arguments.batch_size}; give 2 or more")


if __name__ == "__main__":
    sys.exit(main())
