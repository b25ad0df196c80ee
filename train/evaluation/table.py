"""A table of results, once for the screen and for documents alike."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from equimod.pipelines.errors import one_line

WIDE = 200


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column names the rows, the others hold numbers."""

    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown, numbers to the right."""
        ruler = ["---", *["---:"] * (len(self.columns) - 1)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in (self.columns, ruler, *self.rows))

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        table = ScreenTable(box=None, pad_edge=False)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))  # which rich would read as markup
        # A pipe has no width, and what reads it wants a row a line.
        (console or Console(width=None if sys.stdout.isatty() else WIDE)).print(table)


def spread(value: dict[str, float], digits: int) -> str:
    """A median with the lowest and the highest value."""
    return "{median:,.{d}f} ({low:,.{d}f} to {high:,.{d}f})".format(d=digits, **value)


def origin(result: dict[str, Any]) -> str:
    """Where a stored result comes from, as the end of a sentence."""
    machine, commit = result["machine"], result["commit"]
    at = f", commit {commit['sha'][:10]}{' with changes' if commit['dirty'] else ''}" if commit else ""
    packages = {**result["versions"], **result.get("packages", {})}
    versions = ", ".join(f"{name} {number}" for name, number in packages.items() if name != "equimod")
    return f"{machine['cpu']}, {machine['cores']} cores; {versions}; {result['date'][:10]}{at}."
