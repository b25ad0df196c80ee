"""Command lines called in the test's own process."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def call(main: Callable[[], int], *arguments: object) -> Answer:
    """What the script of `main` answers to these arguments."""
    out, err, terminate = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with patch.object(sys, "argv", ["script", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else bool(exit.code)
        finally:
            signal.signal(signal.SIGTERM, terminate)
    return Answer(code, out.getvalue(), err.getvalue())
