"""What becomes of a result: its table on the screen, its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from equimod.pipelines.durable import durable_file
from equimod.train.evaluation.provenance import provenance
from equimod.train.evaluation.table import Table


def keep(result: dict[str, Any], script: str, argv: Sequence[str], path: Path) -> dict[str, Any]:
    """Write `result` of benchmarks/`script` as JSON, with the command, the commit, the machine and versions before it.

    Returns what was written. Raises OSError.
    """
    whole = {**provenance(f"benchmarks/{script}", argv), **result}
    with durable_file(path) as file:
        file.write(json.dumps(whole, indent=1).encode() + b"\n")
    return whole


def present(
    result: dict[str, Any],
    rows: Callable[[dict[str, Any]], list[Table]],
    script: str,
    argv: Sequence[str],
    output: Path | None,
) -> None:
    """Print the tables that `rows` makes of a result, and keep it where `output` says. Raises OSError."""
    for table in rows(result):
        table.show()
    if output is not None:
        keep(result, script, argv, output)
