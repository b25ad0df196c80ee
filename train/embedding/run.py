"""Embedding a data set: blocks in a folder beside the file, and the file once they are complete."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from equimod.pipelines.durable import locked
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.stored import FileDigest
from equimod.train.distributed import DistInfo, of_first_rank
from equimod.train.embedding.blocks import Blocks, Plan, fill
from equimod.train.embedding.files import write_embeddings
from equimod.train.evaluation.features import FrozenEncoder
from equimod.train.loop import AUTOCAST
from equimod.train.opened_encoder import OpenedEncoder


def embed(
    opened: OpenedEncoder,
    records: Records,
    out: Path,
    *,
    source: Path,
    precision: str,
    dist_info: DistInfo,
    workers: int | None = None,
) -> None:
    """Write the representations of all images of `records` to `out`, with all ranks.

    `source`: where the records are from; `precision`: a key of AUTOCAST. Bits depend on the device and the precision,
    not on the ranks nor on interruptions. Raises EmbeddingError where blocks of another encoder or of other images lie
    beside `out`, which `require_form` has checked, RecordsError for damaged records.
    """
    torch.backends.cudnn.deterministic = True
    encoder = FrozenEncoder(opened.encoder.to(dist_info.device), AUTOCAST[precision])
    weights = FileDigest.of_content(opened.weights).sha256
    plan = Plan.of(weights, encoder, opened.x, records, torch.float32)
    blocks = Blocks(out.with_name(f"{out.name}.parts"), plan)
    with ExitStack() as stack:

        def begin() -> list[int]:
            blocks.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(blocks.folder))
            return blocks.begin()

        def end() -> None:
            write_embeddings(out, blocks, records, source)
            blocks.remove()

        fill(blocks, of_first_rank(begin, dist_info), encoder, records, dist_info, workers)
        of_first_rank(end, dist_info)
