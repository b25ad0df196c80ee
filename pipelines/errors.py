"""What can go wrong in a way that its message explains: a command prints the message, one line, and no traceback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path


class EquimodError(Exception):
    """A failure whose message names what failed, where, and the remedy, in one line. Exit code 1."""


class UsageError(EquimodError):
    """Options or settings that cannot be used: the message gives the name, the value and the remedy. Exit code 2."""


def counted(kinds: Iterable[str]) -> str:
    """How often each kind comes, or what a Counter says, the most frequent first, in one line: `3 .txt, 1 .heic`."""
    return ", ".join(f"{number:,} {kind}" for kind, number in Counter(kinds).most_common())


def spaced(paths: Iterable[Path]) -> str:
    """The paths as on a command line."""
    return " ".join(map(str, paths))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that is most like a misspelt one, such as ` (did you mean resnet18?)`, or nothing."""
    import difflib  # only now: most commands are spelt right

    match = difflib.get_close_matches(word, sorted(known), n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def one_line(text: object) -> str:
    """Text with names in it in one line that can be printed: control characters and bytes beyond UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
