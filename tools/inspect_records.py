"""Say what records hold, verify their checksums, draw a contact sheet: `equimod inspect PATH`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw

from equimod.pipelines.decode import decode_sample
from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import UsageError, one_line
from equimod.pipelines.images import open_images
from equimod.pipelines.progress import say
from equimod.pipelines.records import Records, RecordsError
from equimod.pipelines.records.folder import Labels
from equimod.pipelines.records.manifest import Remark
from equimod.pipelines.records.protocol import fingerprint
from equimod.tools.verify import damaged
from equimod.train.command import run_command

SHOWN = 5  # names and notes in a line
CELL, TEXT_LINES, LINE = 160, 3, 14  # pixels, lines, pixels
COLUMNS = 8


@dataclass(frozen=True)
class Arguments:
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Records, a folder or a list of images, an archive or shards."""
    sheet: Path | None = None
    """Picture to draw, such as sheet.png: samples spread evenly over the records."""
    samples: int = 40
    """Samples in the picture."""
    verify: bool = True
    """Read every sample and compare its checksum, or decode it where there is none."""
    labels: Labels = "auto"
    """What labels the images of a folder have: folder, the name of the first folder on their way; none; auto: whichever
    is plain."""


def describe(records: Records) -> list[str]:
    """Lines that say what the records hold."""
    manifest = records.manifest
    count = np.bincount(records.label, minlength=len(records.classes)) if records.classes else None
    lines = [
        f"format        {records.form}",
        f"samples       {len(records):,}, indices {records.index[0]:,} to {records.index[-1]:,}",
    ]
    if count is None:
        lines.append("labels        none")
    else:
        lines.append(f"classes       {len(records.classes):,} ({_some(records.classes)})")
        lines.append(f"a class       {count.min():,} to {count.max():,} samples")
    lines.append(f"originals     {_sizes(records.size)}")
    if not np.array_equal(records.size, records.stored_size):
        lines.append(f"stored        {_sizes(records.stored_size)}")
    lines += [f"images        {int(records.length.sum()):,} bytes", f"fingerprint   {fingerprint(records)}"]
    if manifest:
        smaller = f", longer side {manifest.max_side} pixels at most" if manifest.max_side else ""
        lines.append(f"made from     {manifest.source}{smaller}")
        if manifest.left_out:
            some = [f"{note.name}: {note.reason}" for note in manifest.left_out[:SHOWN]]
            lines.append(f"left out      {len(manifest.left_out):,} ({_listed(some, len(manifest.left_out))})")
        lines += [_remark(records, number, remark) for number, remark in enumerate(manifest.remarks, 1)]
    return lines


def _remark(records: Records, number: int, remark: Remark) -> str:
    what = "re-encoded" if remark.reencoded else "harmless"
    reasons = ", ".join(filter(None, (remark.reencoded, *remark.harmless)))
    some = [records.source(position) for position in np.flatnonzero(records.remark == number)[:SHOWN].tolist()]
    return f"{what:<14}{remark.samples:,}, {reasons} ({_listed(some, remark.samples)})"


def _listed(some: list[str], count: int) -> str:
    return "; ".join(some) + ("; ..." if count > len(some) else "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _sizes(size: np.ndarray) -> str:
    (least_w, least_h), (mean_w, mean_h), (most_w, most_h) = size.min(axis=0), size.mean(axis=0), size.max(axis=0)
    return f"{least_w} to {most_w} pixels wide (mean {mean_w:.0f}), {least_h} to {most_h} high (mean {mean_h:.0f})"


def verify(records: Records) -> str:
    """Read every sample; a line about what was found. Raises RecordsError naming the first damaged one."""
    kinds: Counter[str] = Counter()
    for fault in damaged(records, kinds):
        raise RecordsError(fault)
    found = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    held = "every checksum fits" if records.manifest else "all can be decoded; this format holds no checksums"
    return f"verified      {found}; {held}"


def contact_sheet(records: Records, samples: int) -> Image.Image:
    """`samples` images spread evenly over the records, with index, class and size under each."""
    positions = np.unique(np.linspace(0, len(records) - 1, min(samples, len(records))).round().astype(int)).tolist()
    rows, height = -(-len(positions) // COLUMNS), CELL + TEXT_LINES * LINE
    sheet = Image.new("RGB", (min(COLUMNS, len(positions)) * CELL, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, position in enumerate(positions):
        left, top = number % COLUMNS * CELL, number // COLUMNS * height
        image = Image.fromarray(decode_sample(records, position))
        scale = (CELL - 8) / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        width, tall = records.size[position].tolist()
        name = one_line(records.classes[records.label[position]]) if records.classes else ""
        text = (f"{records.index[position]}", name, f"{width} x {tall}")
        for line, words in enumerate(text):
            while pen.textlength(words) > CELL - 8:
                words = words.removesuffix("…")[:-1] + "…"
            pen.text((left + 4, top + CELL + line * LINE - 2), words, fill="black")
    return sheet


def _inspect(arguments: Arguments) -> None:
    records = open_images(arguments.path, arguments.labels)
    print("\n".join(map(one_line, describe(records))))
    if arguments.sheet:
        with durable_file(arguments.sheet) as file:
            contact_sheet(records, arguments.samples).save(file, arguments.sheet.suffix[1:].upper() or "PNG")
        say(f"sheet         {arguments.sheet}")
    if arguments.verify:
        print(verify(records))


def main() -> int:
    """Run the command line. Returns the exit code."""

    def run() -> None:
        arguments = tyro.cli(Arguments, description=__doc__)
        if arguments.samples < 1:
            raise UsageError(f"--samples {arguments.samples} is too small; give 1 or more")
        if arguments.sheet and arguments.sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet {arguments.sheet} does not end in .png; give a name that does")
        _inspect(arguments)

    return run_command(run, again="run the same command to start over")


if __name__ == "__main__":
    sys.exit(main())
