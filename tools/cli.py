"""The command `equimod`: one word for each of the project's scripts, with the same options."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from equimod.pipelines.errors import nearest


class Command(NamedTuple):
    """A script behind a word."""

    module: str  # below equimod, with a main() that takes its options from sys.argv
    about: str


COMMANDS = {
    "train": Command("tools.train", "train an encoder on images without labels"),
    "evaluate": Command("train.evaluate", "score a run: linear probe, kNN, equivariance, figures"),
    "compare": Command("tools.compare_runs", "set the scores of several runs side by side, as a table and a figure"),
    "report": Command("tools.report", "write settings, curves, scores and images of runs as one file of HTML"),
    "convert": Command("tools.convert_imagenet", "turn images into records that load fast"),
    "inspect": Command("tools.inspect_records", "say what images or records hold, verify them, draw a sheet"),
    "verify": Command("tools.verify", "compare runs, checkpoints and records with their digests"),
    "export": Command("tools.export", "write the encoder of a run for timm, torchvision, torch.hub, ONNX, TorchScript"),
    "embed": Command("tools.embed", "write the features of every image of a data set"),
    "neighbours": Command("tools.neighbours", "print and draw the images nearest to some, by their features"),
    "draw": Command("tools.draw_shapes", "draw the embedded data set as a folder of images"),
    "doctor": Command("tools.doctor", "say what works on this machine, and what mends the rest"),
    "sweep": Command("tools.sweep", "train and evaluate every row of a table of the paper"),
    "bench": Command("benchmarks.throughput", "measure loaders, operators and training"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: that of the command, 2 for one that is not known."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print(_help())
        return 0
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        print(f"error: equimod has no command {name!r}{hint}; give one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"equimod {name}", *rest]
    run = cast(Callable[[], int], importlib.import_module(f"equimod.{COMMANDS[name].module}").main)
    return run()


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.about}" for name, command in COMMANDS.items())
    return (
        "usage: equimod COMMAND OPTIONS\n\n"
        f"{commands}\n\n"
        "Options of a command: equimod COMMAND --help.\n\n"
        "To begin with, on a folder of images of yours, or on images that are drawn on the spot:\n"
        "  equimod train --data photos\n"
        "  equimod train --method simclr --equimod\n"
        "  equimod evaluate runs/simclr-equimod-shapes"
    )


if __name__ == "__main__":
    sys.exit(main())
