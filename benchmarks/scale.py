"""What grows with the data: `python benchmarks/scale.py disk|features|ranks|url --folder DIR`, which makes it there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import tyro

from equimod.benchmarks.growth.at_url import AtUrl
from equimod.benchmarks.growth.disk import Disk
from equimod.benchmarks.growth.features import KeptFeatures
from equimod.benchmarks.growth.ranks import Ranks
from equimod.benchmarks.growth.section import Section
from equimod.benchmarks.result import present
from equimod.train.command import run_command

COMMANDS: dict[str, Callable[..., Section]] = {"disk": Disk, "features": KeptFeatures, "ranks": Ranks, "url": AtUrl}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        section = tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__, args=given)
        section.check()
        present(section.measure(), section.rows, "scale.py", given, section.output)

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
