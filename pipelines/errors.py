"""What can go wrong in a way that its message explains: a command prints the message, one line, and no traceback."""

from __future__ import annotations


class EquimodError(Exception):
    """A failure whose message names what failed, where, and the remedy, in one line. Exit code 1."""


class UsageError(EquimodError):
    """Options or settings that cannot be used: the message gives the name, the value and the remedy. Exit code 2."""
