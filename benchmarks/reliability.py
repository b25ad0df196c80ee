"""Try what runs, records and files promise, a great many times: `python benchmarks/reliability.py`.

A campaign draws its trials from a seed: the same command tries the same. It exits with 1 where a promise was broken.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

import tyro

from equimod.benchmarks.benchmark import some_of
from equimod.benchmarks.campaigns.campaign import Campaign
from equimod.benchmarks.campaigns.endings import conversion_kills, kills, terminations
from equimod.benchmarks.campaigns.flips import checkpoint_flips, fallback, record_flips
from equimod.benchmarks.campaigns.fuzz import fuzz
from equimod.benchmarks.result import present
from equimod.pipelines.errors import EquimodError, UsageError
from equimod.pipelines.progress import track
from equimod.pipelines.workers import worker_pool
from equimod.train.command import run_command
from equimod.train.evaluation.table import Table

CAMPAIGNS = {
    "checkpoint-flips": Campaign(
        "A checkpoint of which any bit changed is not used.",
        "tests/unit/test_checkpoint.py::test_every_flipped_bit_is_noticed",
        trials=1000,
        quick=24,
        run=checkpoint_flips,
    ),
    "record-flips": Campaign(
        "Records of which any bit changed are refused, by name.",
        "tests/unit/test_damaged_records.py::test_every_flipped_bit_is_noticed",
        trials=1000,
        quick=100,
        run=record_flips,
    ),
    "fallback": Campaign(
        "Where the newest checkpoint is damaged or gone, the one before is taken, and that is said.",
        "tests/unit/test_checkpoint.py::test_the_one_before_is_taken_where_the_newest_is_damaged_or_gone_and_that_is_said",
        trials=400,
        quick=24,
        run=fallback,
    ),
    "fuzz": Campaign(
        "A file of any content is read or answered by one error that names it, within a second and 256 MiB.",
        "tests/system/test_reliability.py::test_every_promise_holds",
        trials=20_000,
        quick=500,
        run=fuzz,
    ),
    "kills": Campaign(
        "A training that was killed goes on, loses one step at most, and ends bit for bit as if nothing had been.",
        "tests/system/test_resume.py::test_a_killed_run_resumes_bit_for_bit",
        trials=100,
        quick=2,
        run=kills,
    ),
    "terminations": Campaign(
        "A training that is sent SIGTERM saves what it has, is gone in five seconds, and goes on bit for bit.",
        "tests/system/test_signals.py::test_sigterm_while_a_run_starts_ends_it_at_once_and_leaves_nothing",
        trials=60,
        quick=2,
        run=terminations,
    ),
    "conversion-kills": Campaign(
        "A conversion that was killed goes on, leaves nothing behind, and gives the same bytes.",
        "tests/system/test_convert.py::test_killed_conversion_goes_on_to_the_same_bytes",
        trials=100,
        quick=4,
        run=conversion_kills,
    ),
}
SHOWN = 20  # faults of a campaign that are told and kept


class BrokenPromiseError(EquimodError):
    """Trials that did not end as promised: the message says how many."""


@dataclass(frozen=True)
class Arguments:
    """Try every promise."""

    only: str = ",".join(CAMPAIGNS)
    """Campaigns, with commas between them."""
    seed: int = 0
    """What trials are drawn from."""
    trials: int | None = None
    """Trials of each campaign; none: as many as it asks for."""
    quick: bool = False
    """Some trials of each, in place of all."""
    jobs: int = 1
    """Campaigns at a time, each in a process of its own."""
    output: Path | None = None
    """JSON file for the result."""

    def check(self) -> None:
        """Raises UsageError."""
        for name in ("trials", "jobs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name}={value}; give 1 or more")


def tried(name: str, seed: int, trials: int) -> dict[str, Any]:
    """What came of a campaign."""
    campaign, began = CAMPAIGNS[name], time.monotonic()
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for trial in track(campaign.run(Path(folder), seed, trials), trials, name, "trials"):
            outcomes[trial.outcome] += 1
            if trial.fault:
                faults.append(trial.fault)
                print(f"{name}: {trial.fault}", file=sys.stderr, flush=True)
    return {
        "name": name,
        "trials": outcomes.total(),
        "broken": len(faults),
        "outcomes": dict(outcomes.most_common()),
        "faults": faults[:SHOWN],
        "seconds": round(time.monotonic() - began, 1),
    }


def _function(test: str) -> str:
    return test.rpartition("::")[2]


def rows(result: dict[str, Any]) -> list[Table]:
    """The table of a result: a row a campaign."""
    cells = [
        [
            f"{CAMPAIGNS[found['name']].promise} (`{found['name']}`; `{_function(CAMPAIGNS[found['name']].test)}`)",
            f"{found['trials']:,}",
            f"{found['broken']:,}",
            "; ".join(f"{number:,} {outcome}" for outcome, number in found["outcomes"].items()),
        ]
        for found in result["campaigns"]
        if found["name"] in CAMPAIGNS
    ]
    return [Table(["promise (campaign)", "trials", "broken", "what came of them"], cells)]


def caption(result: dict[str, Any]) -> str:
    """What stands under the table in a document."""
    minutes = sum(found["seconds"] for found in result["campaigns"]) / 60
    return f"Seed {result['settings']['seed']}, {minutes:.0f} minutes."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 a promise was broken, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        arguments = tyro.cli(Arguments, args=given, prog="reliability.py", description=__doc__)
        names = some_of("only", arguments.only, list(CAMPAIGNS))
        arguments.check()
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of trainings, which share few cores
        number = attrgetter("quick" if arguments.quick else "trials")
        trials = [arguments.trials or number(CAMPAIGNS[name]) for name in names]
        with worker_pool(arguments.jobs) if arguments.jobs > 1 else nullcontext() as pool:
            found = list((pool.map if pool else map)(tried, names, repeat(arguments.seed), trials))
        result = {"benchmark": "reliability", "settings": {"seed": arguments.seed}, "campaigns": found}
        present(result, rows, "reliability.py", given, arguments.output)
        if broken := sum(one["broken"] for one in found):
            raise BrokenPromiseError(f"{broken:,} trials broke a promise; each was told above as it came")

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
