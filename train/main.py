"""Train an encoder without labels: torchrun train/main.py --method simclr --equimod."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from equimod.pipelines.progress import say
from equimod.train.command import run_command, wrong_usage_once
from equimod.train.config import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""

    def train() -> int:
        with wrong_usage_once():
            config = parse(sys.argv[1:] if argv is None else argv, say=say)
        from equimod.train.run import run_training  # only now: torch takes seconds to import, and --help should not

        return run_training(config)

    return run_command(train, again="go on from the newest checkpoint with --resume auto")


if __name__ == "__main__":
    sys.exit(main())
