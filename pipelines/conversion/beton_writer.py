"""Any records to one .beton file: JPEG files byte for byte, everything else as pixels."""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equimod.pipelines.codec import JPEG_START
from equimod.pipelines.conversion.unfinished_beton import UnfinishedBeton, parts_folder
from equimod.pipelines.decode import decode_image
from equimod.pipelines.progress import track
from equimod.pipelines.records.beton import (
    ENTRY,
    FIELD,
    HEADER,
    IMAGE_FIELD,
    INT_FIELD,
    JPEG,
    MAGIC,
    RAW,
    TRAILER,
    TYPES,
    VERSION,
    Trailer,
    head_digest,
)
from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.names import pack_names
from equimod.pipelines.records.protocol import Records, RecordsError, fingerprint
from equimod.pipelines.stored import FileDigest

SMALLEST_PAGE, LARGEST_PAGE = 1 << 23, 1 << 31  # ffcv's default, and the largest that its header has room for
LONGEST_SIDE = 65_535  # sides of an image are stored in 16 bits
FIELDS = (("image", IMAGE_FIELD), *((name, INT_FIELD) for name in ("label", "index", "width", "height")))
METADATA = np.dtype([(name, TYPES[kind]) for name, kind in FIELDS], align=True)
_IMAGES_AHEAD = 16  # a worker


def write_beton(
    records: Records,
    path: Path,
    manifest: Manifest,
    *,
    raw: bool = False,
    workers: int = 1,
) -> None:
    """Write `records` into the file `path`, there when it is complete; the same records give the same bytes.

    `raw` stores the pixels of all images; otherwise JPEG files stay as they are, and what is none is stored as pixels.
    Goes on where it was interrupted. Raises RecordsError where an image is damaged or too large for the format, OSError
    where `path` cannot be written.
    """
    page = _page_size(records, raw)
    metadata = np.zeros(len(records), METADATA)
    entries = np.zeros(len(records), ENTRY)
    first = _page_start(HEADER.itemsize + len(FIELDS) * FIELD.itemsize + metadata.nbytes, page)
    with UnfinishedBeton(parts_folder(path), f"{fingerprint(records)} {raw}", first) as images:
        contents = _contents(records, raw, workers, start=images.count)
        for position, (mode, content) in track(
            enumerate(contents, images.count), len(records), f"writing {path.name}", "images", done=images.count
        ):
            if len(content) > page:
                name = records.name(position)
                raise RecordsError(f"{name} does not fit a page of {page:,} bytes; convert with --raw")
            if images.end % page + len(content) > page:
                images.end = _page_start(images.end, page)
            images.write(mode, content)
        rows = images.rows()
        metadata["image"]["mode"], metadata["image"]["pointer"] = rows["mode"], rows["pointer"]
        metadata["image"]["width"], metadata["image"]["height"] = records.stored_size.T
        entries["sample"], entries["pointer"], entries["size"] = np.arange(len(rows)), rows["pointer"], rows["size"]
        positions = track(range(len(records)), len(records), "reading names", "samples")
        names = pack_names(records.source(position) for position in positions)
        manifest = replace(manifest, total_bytes=int(entries["size"].sum()))
        metadata["label"], metadata["index"] = records.label, records.index
        metadata["width"], metadata["height"] = records.size.T
        digest, empty = FileDigest.of_content(names), hashlib.sha256().hexdigest()
        trailer = Trailer(manifest, records.classes, rows["crc32"], records.remark.astype(np.uint16), digest, empty)
        at, length = images.end, len(trailer.pack())
        header = np.array((VERSION, len(FIELDS), page, len(records), at + length + len(names)), HEADER)
        head = head_digest(header[()], _descriptors((MAGIC, 0, 0, 0)), metadata, entries)
        packed = replace(trailer, head=head).pack()  # as long as with another digest
        images.file.seek(at)
        images.file.write(packed + names)
        images.file.write(entries.view(np.uint8).data)
        images.file.seek(0)
        images.file.write(header.tobytes())
        images.file.write(_descriptors((MAGIC, at, len(packed), zlib.crc32(packed))).tobytes())
        images.file.write(metadata.view(np.uint8).data)
        images.finish(path)


def _page_size(records: Records, raw: bool) -> int:
    """The smallest page that holds the largest image, in bytes."""
    sides = records.stored_size.astype(np.int64)
    lengths = sides.prod(axis=1) * 3 if raw else records.length
    largest, longest = int(lengths.argmax()), int(sides.max(axis=1).argmax())
    if sides[longest].max() > LONGEST_SIDE or lengths[largest] > LARGEST_PAGE:
        name = records.name(longest if sides[longest].max() > LONGEST_SIDE else largest)
        raise RecordsError(f"{name} is too large for .beton; convert with a smaller --max-side")
    return max(SMALLEST_PAGE, 1 << (int(lengths[largest]) - 1).bit_length())


def _page_start(at: int, page: int) -> int:
    return -(-at // page) * page


def _contents(records: Records, raw: bool, workers: int, start: int) -> Iterator[tuple[int, bytes | memoryview]]:
    """Mode and bytes of every image from `start` on, in order, computed ahead in `workers` threads."""

    def content(position: int) -> tuple[int, bytes | memoryview]:
        content = records.read(position)
        if not raw and not isinstance(content, np.ndarray) and bytes(content[:2]) == JPEG_START:
            return JPEG, content
        return RAW, decode_image(records, position, content).tobytes()

    positions = iter(range(start, len(records)))
    with ThreadPoolExecutor(workers, thread_name_prefix="equimod-beton") as pool:
        pending = deque(pool.submit(content, position) for position in islice(positions, workers * _IMAGES_AHEAD))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(content, position) for position in islice(positions, 1))
        finally:
            for future in pending:
                future.cancel()


def _descriptors(trailer: tuple[bytes, int, int, int]) -> NDArray[np.void]:
    fields = np.zeros(len(FIELDS), FIELD)
    fields["name"], fields["type"] = zip(*FIELDS, strict=True)
    place = np.array(trailer, TRAILER).tobytes().ljust(FIELD["arguments"].itemsize, b"\0")
    fields["arguments"][fields["type"] == INT_FIELD] = np.void(place)
    return fields
