"""What the command lines of this folder say when they fail: one line, once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from equimod.train.config import ConfigError, silence

_GRACE = 2.0  # seconds: torchrun ends all ranks once one exits, and the first may not have spoken yet


def fail(error: Exception | str, code: int) -> int:
    """Print one line, naming the rank where there are several. Returns `code`."""
    rank = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"error: {rank}{error}", file=sys.stderr)
    return code


@contextmanager
def wrong_usage_once() -> Iterator[None]:
    """Around the parsing of a command line: of several ranks, only the first tells what is wrong with it.

    The others exit alike, with 2 for a ConfigError, but silently.
    """
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    try:
        with silence():
            yield
    except (ConfigError, SystemExit) as error:
        time.sleep(_GRACE)
        raise SystemExit(error.code if isinstance(error, SystemExit) else 2) from None
