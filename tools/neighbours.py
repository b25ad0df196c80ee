"""Print and draw the images nearest to some of a data set: `equimod neighbours FEATURES QUERY...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from equimod.pipelines.errors import UsageError
from equimod.pipelines.progress import say
from equimod.train.command import run_command
from equimod.train.config.settings import Labels
from equimod.train.evaluation.table import Table


@dataclass(frozen=True)
class Arguments:
    """The images whose features are nearest to those of a query, by cosine similarity.

    Example: equimod neighbours features.npz 0 cats/tom.jpg
    """

    features: tyro.conf.Positional[Path]
    """File of equimod embed."""
    query: tyro.conf.Positional[tuple[str, ...]]
    """Images of the data set, by index or by path, of which the end is enough."""
    count: int = 8
    """Neighbours of each."""
    images: Path | None = None
    """The data set, for the picture; none: where it was when it was embedded."""
    labels: Labels = "auto"
    """What labels the images of a folder have, as in training."""
    output: Path | None = None
    """PNG file of the picture; none: beside the features, as FEATURES.png."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""

    def run() -> None:
        arguments = tyro.cli(Arguments, args=sys.argv[1:] if argv is None else list(argv))
        if arguments.count < 1:
            raise UsageError(f"--count {arguments.count} is too small; give 1 or more")
        if not arguments.query:
            raise UsageError("no query is given; give the index or the path of an image")
        # Only now: torch and matplotlib take seconds to import, and --help should not.
        from equimod.pipelines.images import open_images
        from equimod.train.embedding.files import read_embeddings
        from equimod.train.embedding.neighbours import find
        from equimod.train.embedding.picture import draw_neighbours

        embeddings = read_embeddings(arguments.features)
        found = find(embeddings, arguments.query, arguments.count)
        for own, rows, similarities in zip(found.query, found.row, found.similarity, strict=True):
            cells = [[embeddings.path[row], f"{value:.3f}"] for row, value in zip(rows, similarities, strict=True)]
            Table([f"nearest to {embeddings.path[own]}", "similarity"], cells).show()
        path = arguments.output or arguments.features.with_suffix(".png")
        draw_neighbours(found, embeddings, open_images(arguments.images or embeddings.source, arguments.labels), path)
        say(f"picture: {path}")

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
