"""What every command line shares: exit codes, errors in one line, said once by several ranks."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from equimod.pipelines.durable import remedy
from equimod.pipelines.errors import EquimodError, UsageError, one_line
from equimod.train.config import silence
from equimod.train.signals import SIGTERM_EXIT, Terminated, stops_raise

_GRACE = 2.0  # seconds: torchrun ends all ranks once one exits, and the first may not have spoken yet


def run_command(command: Callable[[], int | None], *, again: str) -> int:
    """Exit code of `command`: what it returns, 0 for None; 2 after a UsageError, 1 after any other error that is
    expected, 130 after Ctrl-C, 143 after SIGTERM.

    An error is one line; `again` says there how to go on, such as "run the same command to continue".
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what it cannot encode
    interrupted = f"interrupted; {again}"
    try:
        with stops_raise(interrupted):
            return command() or 0
    except UsageError as error:
        return _fail(error, 2)
    except (EquimodError, BrokenProcessPool) as error:
        return _fail(error, 1)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python writes the rest at its end
        return 1
    except OSError as error:
        # Without a number it is our own, such as a folder that is there already, and says what to do.
        return _fail(f"{error}; {remedy(error)} and {again}" if error.errno else error, 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        told = str(error).strip().splitlines()
        return _fail(f"not enough memory ({told[0] if told else 'none is left'}); ask for less, or free some", 1)
    except (KeyboardInterrupt, Terminated) as stop:
        print(interrupted, file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else SIGTERM_EXIT


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is Python's or torch's that memory is used up, of the host or a GPU."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error)


def _fail(error: Exception | str, code: int) -> int:
    """Print one line, naming the rank where there are several. Returns `code`."""
    line = str(error).strip()
    if "Traceback (most recent call last)" in line:  # of a DataLoader's worker: the last line says what happened
        line = line.splitlines()[-1]
    rank = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"error: {rank}{one_line(line)}", file=sys.stderr)
    return code


@contextmanager
def refused_settings() -> Iterator[None]:
    """Turn the ValueErrors of constructors that check their arguments into UsageErrors."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def wrong_usage_once() -> Iterator[None]:
    """Around the parsing of a command line: of several ranks, only the first tells what is wrong with it.

    The others exit alike, with 2 for a UsageError, but silently.
    """
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    try:
        with silence():
            yield
    except (UsageError, SystemExit) as error:
        time.sleep(_GRACE)
        raise SystemExit(error.code if isinstance(error, SystemExit) else 2) from None
