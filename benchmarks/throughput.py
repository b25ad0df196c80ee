"""Measure images/s, CPU time, memory, latency: python benchmarks/throughput.py BENCHMARK OPTIONS.

Every number is a median over interleaved rounds, every ratio a median of the ratios within a round. `--output` keeps
all rounds with the machine, the versions and the commit, and draws them as a picture beside the file;
`benchmarks/readme.py` puts results into the documents.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from equimod.benchmarks.benchmark import Benchmark, run_benchmark
from equimod.benchmarks.compare_embedding import Embed
from equimod.benchmarks.compare_loaders import Loader, Views
from equimod.benchmarks.compare_operators import Augment
from equimod.benchmarks.compare_training import Step, Train

_COMMANDS = (Loader, Views, Augment, Step, Train, Embed)
COMMANDS: dict[str, Callable[..., Benchmark]] = {command.name: command for command in _COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    return run_benchmark(COMMANDS, "throughput.py", __doc__, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
