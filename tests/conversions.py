"""Any source as records, and whether two records hold the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equimod.pipelines.conversion import Source, open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import Records, open_records


def converted(source: Source | Path, output: Path, **settings: object) -> Records:
    """Records of the format that the output's name asks for."""
    source = open_source(source) if isinstance(source, Path) else source
    write = convert_to_beton if output.suffix == ".beton" else convert
    write(source, output, ConversionSettings(**{"workers": 1, **settings}))
    return open_records(output)


def same_samples(a: Records, b: Records) -> bool:
    columns = ("label", "index", "size", "stored_size", "length")
    return (
        a.classes == b.classes
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)
        and all(a.source(i) == b.source(i) and bytes(a.read(i)) == bytes(b.read(i)) for i in range(len(a)))
    )
