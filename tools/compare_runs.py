"""Set runs side by side: `equimod compare RUN RUN ...`.

Prints a table of their scores and draws a figure: how well the class is found, and how much of everything else that is
known of an image (factors.csv beside the images) a linear map reads from the representation. Runs that differ in their
seed alone are one column, with mean and standard deviation. Evaluate each of them first, with the same options:
`equimod evaluate RUN --linear-cached --knn --factors`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from equimod.pipelines.errors import UsageError
from equimod.pipelines.progress import say
from equimod.train.command import run_command
from equimod.train.config import read_run
from equimod.train.evaluation.comparison import by_settings, rows, settings_of
from equimod.train.evaluation.scores import read_scores
from equimod.train.evaluation.summary import summary


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of evaluated runs."""
    output: Path = Path("comparison.png")
    """The figure."""


def compared(runs: Sequence[Path]) -> dict[str, object]:
    """The runs by their settings but for the seed: `rows` with title and summaries, as in a result of a sweep.

    Raises UsageError for runs that were evaluated on other images than the first, ConfigError or OSError where a file
    is missing.
    """
    settings = by_settings({run: read_run(run) for run in runs})
    found = [{"title": title, "runs": [summary(path) for path in paths]} for title, paths in settings.items()]
    first, *others = ((run, _images(run)) for run in runs)
    for run, images in others:
        if images != first[1]:
            raise UsageError(
                f"{run} was evaluated on {', '.join(images)} and {first[0]} on {', '.join(first[1])}; evaluate both on "
                "the same images, with --val"
            )
    return {"rows": found}


def _images(run: Path) -> list[str]:
    """What a run was evaluated on."""
    evaluators = read_scores(run)["evaluators"].values()
    return sorted({str(Path(used["val"]).resolve()) for used in evaluators})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""

    def run() -> None:
        arguments = tyro.cli(Arguments, args=argv, description=__doc__)
        if len(arguments.runs) < 2:
            raise UsageError("one run alone has nothing to be compared with; give the folders of two or more")
        result = compared(arguments.runs)
        for table in rows(result):
            table.show()
        # Only now: torch and matplotlib take seconds to import, and --help should not.
        from equimod.train.evaluation.figures import draw_comparison

        draw_comparison(settings_of(result), arguments.output, "What a linear read-out finds in the representations")
        say(f"figure: {arguments.output}")

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
