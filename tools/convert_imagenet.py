"""Convert an ImageFolder tree into records: `python tools/convert_imagenet.py INPUT OUTPUT --format dali`.

Every image is decoded once as a check. Damaged ones stop the conversion (nothing that is complete is lost) or, with
`--on-error skip`, are left out and listed in OUTPUT/manifest.json. Run the same command again to continue one that was
interrupted.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from equimod.pipelines.records.convert import Conversion, DamagedImagesError, convert
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.workers import available_cores
from equimod.tools.command import image_progress, run_command

DAMAGED_SHOWN = 20


@dataclass(frozen=True)
class Arguments:
    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """Folder that holds one sub-folder of images a class, such as ImageNet's train."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder for the records; new, empty, or an interrupted conversion to continue."""
    format: Literal["dali"] = "dali"
    """dali: webdataset tar shards with DALI's index, read by every loader of this project."""
    workers: int = available_cores()
    """Processes that decode and write."""
    on_error: Literal["fail", "skip"] = "fail"
    """What a damaged image does: stop the conversion, or be left out and listed."""
    shard_size: int = 1000
    """Images a shard."""
    overwrite: bool = False
    """Replace an earlier conversion in OUTPUT."""


def _convert(arguments: Arguments) -> None:
    start = time.monotonic()
    with image_progress("converting") as progress:
        try:
            conversion = convert(
                arguments.input,
                arguments.output,
                workers=arguments.workers,
                on_error=arguments.on_error,
                shard_size=arguments.shard_size,
                overwrite=arguments.overwrite,
                progress=progress,
            )
        except DamagedImagesError as error:
            for note in error.damaged[:DAMAGED_SHOWN]:
                print(f"damaged: {note.name}: {note.reason}", file=sys.stderr)
            if len(error.damaged) > DAMAGED_SHOWN:
                print(f"... and {len(error.damaged) - DAMAGED_SHOWN} more", file=sys.stderr)
            raise
    print(_summary(conversion, arguments.output, time.monotonic() - start))


def _summary(conversion: Conversion, output: Path, seconds: float) -> str:
    manifest = conversion.manifest
    state = f"{seconds:.1f} s" if conversion.written else "was complete already"
    return (
        f"{output}: {manifest.samples:,} samples, {manifest.classes:,} classes, {len(manifest.shards):,} shards, "
        f"{manifest.bytes:,} bytes, {len(manifest.reencoded):,} re-encoded, {len(manifest.left_out):,} left out, "
        f"{state}"
    )


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    for name, value in (("--workers", arguments.workers), ("--shard-size", arguments.shard_size)):
        if value < 1:
            print(f"error: {name} {value} is too small; give 1 or more", file=sys.stderr)
            return 2
    again = "continue, now without --overwrite" if arguments.overwrite else "continue"
    return run_command(lambda: _convert(arguments), RecordsError, again=again)


if __name__ == "__main__":
    sys.exit(main())
