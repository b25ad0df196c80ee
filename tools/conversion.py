"""What the converters' command lines share: options, the conversion itself, its summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equimod.pipelines.conversion.check import Shrink
from equimod.pipelines.conversion.convert import Conversion, DamagedImagesError, convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.conversion.source import Source
from equimod.pipelines.cores import available_cores
from equimod.pipelines.errors import UsageError, counted, one_line
from equimod.pipelines.progress import say
from equimod.pipelines.records.beton import SUFFIX
from equimod.train.command import run_command

DAMAGED_SHOWN = 20
DEFAULT_QUALITY, DEFAULT_SHARD_SIZE = 90, ConversionSettings.shard_size


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    format: Literal["dali", "ffcv"] | None = None
    """dali: webdataset tar shards with DALI's index. ffcv: one .beton file; until it is complete, the disk holds the
    images twice. Every loader of this project but ffcv reads both. Not given: what the name of OUTPUT says, ffcv where
    it ends in .beton."""
    workers: int = available_cores()
    """Processes that decode and write."""
    on_error: Literal["fail", "skip"] = "fail"
    """What a damaged image does: stop the conversion, or be left out and listed."""
    max_side: int | None = None
    """Store a smaller copy of images whose longer side has more than this many pixels."""
    quality: int | None = None
    """JPEG quality of smaller copies, 1 to 100; 90 where it is not given."""
    raw: bool = False
    """Store pixels instead of JPEG (ffcv only): no decoding, several times the room."""
    shard_size: int | None = None
    """Images a shard (dali only); 1,000 where it is not given."""
    overwrite: bool = False
    """Replace an earlier conversion in OUTPUT."""

    def check(self, output: Path) -> None:
        """Raises UsageError for options that cannot be, or do not go together, or with the path of the records."""
        beton = output.suffix == SUFFIX
        if self.format and beton != (self.format == "ffcv"):
            name = f"a folder, whose name does not end in {SUFFIX}" if beton else f"a file name ending in {SUFFIX}"
            raise UsageError(f"OUTPUT {output} does not fit --format {self.format}; give {name}")
        for name, value in (("workers", self.workers), ("shard-size", self.shard_size), ("max-side", self.max_side)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value} is too small; give 1 or more")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality} is out of range; give 1 to 100")
        if self.quality is not None and self.max_side is None:
            raise UsageError("--quality is of the smaller copies that --max-side makes; give --max-side too")
        if self.quality is not None and self.raw:
            raise UsageError("--quality is of JPEG, and --raw stores pixels; leave one of them out")
        if self.raw and not beton:
            raise UsageError(f"--raw is of {SUFFIX} files; give an OUTPUT whose name ends in {SUFFIX}")
        if self.shard_size is not None and beton:
            raise UsageError("--shard-size is of tar shards; leave it out, or give a folder as OUTPUT")

    def settings(self) -> ConversionSettings:
        """The options as the conversion takes them."""
        return ConversionSettings(
            workers=self.workers,
            on_error=self.on_error,
            shard_size=self.shard_size or DEFAULT_SHARD_SIZE,
            shrink=Shrink(self.max_side, self.quality or DEFAULT_QUALITY) if self.max_side else None,
            raw=self.raw,
            overwrite=self.overwrite,
        )


def main(options: ConversionOptions, source: Callable[[], Source], output: Path) -> int:
    """Convert what `source` opens into `output`. Returns the exit code."""
    again = "continue, now without --overwrite" if options.overwrite else "continue"
    return run_command(lambda: _convert(options, source, output), again=f"run the same command to {again}")


def _convert(options: ConversionOptions, open_source: Callable[[], Source], output: Path) -> None:
    options.check(output)
    start = time.monotonic()
    source = open_source()
    try:
        write = convert_to_beton if output.suffix == SUFFIX else convert
        conversion = write(source, output, options.settings())
    except DamagedImagesError as error:
        for note in error.damaged[:DAMAGED_SHOWN]:
            print(f"damaged: {note.name}: {one_line(note.reason)}", file=sys.stderr)
        if len(error.damaged) > DAMAGED_SHOWN:
            print(f"... and {len(error.damaged) - DAMAGED_SHOWN} more", file=sys.stderr)
        raise
    say(_summary(conversion, output, time.monotonic() - start))
    manifest = conversion.manifest
    for what, reasons in (("re-encoded", manifest.reencoded), ("stored as it is, harmless", manifest.harmless)):
        if reasons:
            say(f"{what}: {counted(reasons)}")


def _summary(conversion: Conversion, output: Path, seconds: float) -> str:
    manifest = conversion.manifest
    classes = f"{manifest.classes:,} classes" if manifest.classes else "no labels"
    shards = f"{len(manifest.shards):,} shards, " if manifest.shards else ""
    state = f"{seconds:.1f} s" if conversion.written else "was complete already"
    return (
        f"{output}: {manifest.samples:,} samples, {classes}, {shards}{manifest.total_bytes:,} bytes, "
        f"{manifest.reencoded.total():,} re-encoded, {len(manifest.left_out):,} left out, {state}"
    )
