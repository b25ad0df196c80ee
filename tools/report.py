"""Write the report of a run, or of several side by side, as one file of HTML: `equimod report RUN [RUN ...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import UsageError
from equimod.pipelines.progress import say
from equimod.train.command import run_command

REPORT = "report.html"


@dataclass(frozen=True)
class Arguments:
    """Write what there is to see of runs into one file of HTML that needs no network.

    Settings, curves, time, scores, and where the images are there, views, nearest neighbours and a map of the features.
    Example: equimod report runs/simclr-equimod-shapes
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN ...")]
    """Folders of runs. Evaluate them first; what was not measured is left out."""
    output: Path | None = None
    """The file; none: report.html in the folder of the run, of several in the current one."""
    data: Path | None = None
    """Images to show and to make features of, in place of those of the runs."""
    images: bool = True
    """Show images, which --no-images keeps from whoever is given the report."""
    samples: int = 2000
    """Images that features are made of for neighbours and map, at most, spaced evenly; 0: neither of them."""
    map: Literal["pca", "umap"] = "pca"
    """How features are brought into the plane; umap needs the extra umap."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""

    def run() -> None:
        words = sys.argv[1:] if argv is None else list(argv)
        arguments = tyro.cli(Arguments, args=words, config=(FlagCreatePairsOff,))
        folders = list(dict.fromkeys(arguments.runs))
        if not folders:
            raise UsageError("no run is given; give the folder of one or more")
        if arguments.samples < 0:
            raise UsageError(f"--samples {arguments.samples} is too small; give 0 or more")
        output = arguments.output or (folders[0] if len(folders) == 1 else Path()) / REPORT
        if output.is_dir():
            raise UsageError(f"--output {output} is a folder; give the name of a file in it")
        # Only now: torch and matplotlib take seconds to import, and --help should not.
        from equimod.train.html_report.contents import gather
        from equimod.train.html_report.images import Look, look_at_images
        from equimod.train.html_report.page import render, require_jinja

        require_jinja()
        runs = gather(folders, say)
        if not output.parent.is_dir():
            raise UsageError(f"--output {output} lies in no folder that there is; make {output.parent}")
        look = Look(arguments.data, arguments.images, arguments.samples, arguments.map)
        with durable_file(output) as out:
            out.write(render(runs, look_at_images(runs, look), output))
        say(f"report: {output}")

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
