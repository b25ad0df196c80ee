"""Write the README's tables from the newest results: python benchmarks/readme.py [--check].

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of `TABLES`. Its numbers come from
the file of that benchmark in `benchmarks/results/` whose date is the latest.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from equimod.benchmarks import gpu, gpu_memory, parity, rehearse, scaling
from equimod.benchmarks.compare_loaders import Loader, Views
from equimod.benchmarks.compare_operators import Augment
from equimod.benchmarks.compare_training import Train
from equimod.benchmarks.large_batch import Chunks, Loss
from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import EquimodError
from equimod.train.command import run_command
from equimod.train.evaluation import sweep_tables
from equimod.train.evaluation.table import Table, origin

_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CHECKOUT = Path(__file__).parent.parent

_FORMER = {"grad_cache": "accumulate"}  # names of benchmarks in results that were stored under an earlier one

Rows = Callable[[dict[str, Any]], list[Table]]
Caption = Callable[[dict[str, Any]], str]


class ReadmeError(EquimodError):
    """A README that cannot be filled: the message gives the reason and the remedy in one line."""


@dataclass(frozen=True)
class Arguments:
    """Write the tables of the README from the newest results."""

    check: bool = False
    """Change nothing; exit with 1 where the README is stale."""
    readme: Path = _CHECKOUT / "README.md"
    """The file that holds the tables."""
    results: Path = _CHECKOUT / "benchmarks" / "results"
    """The folder that holds the results."""


def render_tables(text: str, results: Path) -> str:
    """`text` with every table rewritten from the files in `results`.

    Raises ReadmeError for a table that is not known or has no result, and for a marker without its end.
    """

    def table(block: re.Match[str]) -> str:
        name = block[2]
        if name not in TABLES:
            raise ReadmeError(f"table {name!r} is not known; name one of {', '.join(TABLES)}")
        rows, caption = TABLES[name]
        result = _newest(name, results)
        tables = "\n".join(table.markdown() for table in rows(result))
        return f"{block[1]}{tables}\n{caption(result)} {origin(result)}\n{block[3]}"

    rendered, tables = _BLOCK.subn(table, text)
    if tables != text.count("<!-- table:"):
        raise ReadmeError("a table marker has no '<!-- end -->' after it; close every table")
    return rendered


def _newest(benchmark: str, results: Path) -> dict[str, Any]:
    found = [json.loads(path.read_bytes()) for path in sorted(results.glob("*.json"))]
    of_this = [result for result in found if result["benchmark"] in (benchmark, _FORMER.get(benchmark))]
    if not of_this:
        raise ReadmeError(f"{results} holds no result of {benchmark!r}; run that benchmark with --output")
    newest: dict[str, Any] = max(of_this, key=lambda result: result["date"])
    return newest


TABLES: dict[str, tuple[Rows, Caption]] = {
    "loader": (Loader.rows, Loader.caption),
    "views": (Views.rows, Views.caption),
    "augment": (Augment.rows, Augment.caption),
    "train": (Train.rows, Train.caption),
    "grad_cache": (Chunks.rows, Chunks.caption),
    "loss": (Loss.rows, Loss.caption),
    "rehearse": (rehearse.rows, rehearse.caption),
    "gpu": (gpu.rates, gpu.caption),
    "gpu_memory": (gpu_memory.rows, gpu_memory.caption),
    "scaling": (scaling.rows, scaling.caption),
    "table1-cpu": (sweep_tables.rows, sweep_tables.caption),
    "controls-cpu": (sweep_tables.rows, sweep_tables.caption),
    "resolution-cpu": (sweep_tables.rows, sweep_tables.caption),
    "figures-cpu": (sweep_tables.figure_rows, sweep_tables.figure_caption),
    "parity": (parity.rows, parity.caption),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done or up to date, 1 stale or failed."""

    def run() -> None:
        arguments = tyro.cli(Arguments, args=argv, prog="readme.py", description=__doc__)
        text = arguments.readme.read_text(encoding="utf-8")
        rendered = render_tables(text, arguments.results)
        if rendered == text:
            return
        if arguments.check:
            raise ReadmeError(f"{arguments.readme.name} is stale; run python benchmarks/readme.py")
        with durable_file(arguments.readme) as file:
            file.write(rendered.encode())

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
