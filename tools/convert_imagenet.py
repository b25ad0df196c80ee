"""Convert images into records: `equimod convert INPUT... OUTPUT`, a folder of tar shards or one .beton file.

INPUT is a folder of images, with one sub-folder a class or without labels; a list of images; a tar or zip archive of
such a folder; webdataset shards, such as 'train-{0000..0146}.tar'; parquet files of images as Hugging Face publishes
them, or a folder of those; an archive of ImageNet as it is downloaded
(ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar); or records of either format, whose images are handed through byte
for byte. Archives are read in place; a compressed tar is unpacked into $TMPDIR while the conversion runs.

Every image is decoded once as a check. Damaged ones stop the conversion (nothing that is complete is lost) or, with
`--on-error skip`, are left out and listed in the records. Run the same command again to continue one that was
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from equimod.pipelines.conversion import Source, open_sources
from equimod.pipelines.errors import UsageError
from equimod.pipelines.records.folder import Labels
from equimod.tools import conversion


@dataclass(frozen=True, kw_only=True)
class _Input:
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT... OUTPUT")]
    """What to convert: folders or lists of images, archives, parquet, patterns of shards, or records; several become
    one. Then the folder for the records (dali) or the file ending in .beton (ffcv); new, or an interrupted conversion
    to continue."""
    devkit: Path | None = None
    """Archive with the labels of ImageNet's validation images; none: ILSVRC2012_devkit_t12.tar.gz beside INPUT."""
    labels: Labels = "auto"
    """What labels the images of a folder have: folder, the name of the first folder on their way; none; auto: whichever
    is plain."""


@dataclass(frozen=True, kw_only=True)
class Arguments(conversion.ConversionOptions, _Input):
    pass


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    *inputs, output = arguments.paths or [Path()]
    return conversion.main(arguments, lambda: _open(inputs, arguments), output)


def _open(inputs: Sequence[Path], arguments: Arguments) -> Source:
    if not inputs:
        raise UsageError("INPUT or OUTPUT is missing; give what to convert, then where to")
    return open_sources(inputs, arguments.devkit, arguments.labels)


if __name__ == "__main__":
    sys.exit(main())
