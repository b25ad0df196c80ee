"""The file that a benchmark leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equimod.pipelines.durable import durable_file
from equimod.train.evaluation.provenance import provenance


def keep(result: dict[str, Any], script: str, argv: Sequence[str], path: Path) -> dict[str, Any]:
    """Write `result` of benchmarks/`script` as JSON, with the command, the commit, the machine and versions before it.

    Returns what was written. Raises OSError.
    """
    whole = {**provenance(f"benchmarks/{script}", argv), **result}
    with durable_file(path) as file:
        file.write(json.dumps(whole, indent=1).encode() + b"\n")
    return whole
