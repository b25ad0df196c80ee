"""Train an encoder without labels: torchrun train/main.py --method simclr --equimod."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from equimod.pipelines.durable import remedy
from equimod.train.config import ConfigError, parse
from equimod.train.usage import fail, wrong_usage_once


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    try:
        with wrong_usage_once():
            config = parse(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        return fail(error, 2)

    # Only now: torch takes seconds to import, and --help should not.
    from equimod.pipelines.records.protocol import RecordsError
    from equimod.train.checkpoint import CheckpointError
    from equimod.train.distributed import RankLostError
    from equimod.train.loop import NonFiniteLoss
    from equimod.train.run import run_training

    try:
        return run_training(config)
    except ConfigError as error:
        return fail(error, 2)
    except (RecordsError, CheckpointError, NonFiniteLoss, RankLostError) as error:
        return fail(error, 1)
    except OSError as error:
        return fail(f"{error}; {remedy(error)} and go on with --resume auto", 1)
    except KeyboardInterrupt:
        return fail("interrupted; --resume auto goes on from the newest checkpoint", 130)


if __name__ == "__main__":
    sys.exit(main())
