"""Convert CIFAR-10 into records: `python tools/convert_cifar10.py INPUT OUTPUT --split train`.

INPUT is the folder that torchvision downloads to, or the folder cifar-10-batches-py or the archive
cifar-10-python.tar.gz in it. Pixels are kept exactly: as PNG in tar shards, as they are in a .beton file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from equimod.pipelines.conversion.cifar import Split, cifar10_source
from equimod.tools import conversion


@dataclass(frozen=True, kw_only=True)
class _Input:
    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """Folder or archive with the files of CIFAR-10."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder for the records (dali) or file ending in .beton (ffcv); new, or an interrupted conversion to continue."""
    split: Split
    """Which images."""


@dataclass(frozen=True, kw_only=True)
class Arguments(conversion.ConversionOptions, _Input):
    pass


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    return conversion.main(arguments, lambda: cifar10_source(arguments.input, arguments.split), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
