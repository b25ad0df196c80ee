"""Representations of images on disk, made by all ranks, for this evaluation and those to come."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from equimod.pipelines.durable import FolderBusyError, locked
from equimod.pipelines.policy import CenterPolicy
from equimod.pipelines.progress import say
from equimod.pipelines.records.protocol import Records
from equimod.train.distributed import DistInfo, of_first_rank
from equimod.train.embedding.blocks import Blocks, Plan, fill
from equimod.train.evaluation.features import FrozenEncoder

FOLDER = "features"  # beside eval.json


def stored_features(
    folder: Path,
    weights: str,
    encoder: FrozenEncoder,
    records: Records,
    x: CenterPolicy,
    *,
    dist_info: DistInfo,
    workers: int | None = None,
) -> Blocks:
    """The representations of the images x of `records`, in what the encoder computes in; all ranks must ask.

    They lie in `folder` by a digest of all that they depend on; those of other weights are removed. What is there is
    not made again, nor is what an interruption left. Raises FolderBusyError where another process makes them.
    """
    plan = Plan.of(weights, encoder, x, records)
    of_weights = folder / FOLDER / weights[:16]
    blocks = Blocks(of_weights / plan.digest, plan)
    with ExitStack() as stack:

        def begin() -> list[int]:
            blocks.folder.mkdir(parents=True, exist_ok=True)
            for other in of_weights.parent.iterdir():
                if other != of_weights and other.is_dir():
                    _remove_unused(other)
            stack.enter_context(locked(blocks.folder))
            return blocks.begin()

        missing = of_first_rank(begin, dist_info)
        if missing:
            fill(blocks, missing, encoder, records, dist_info, workers)
            if dist_info.rank == 0:
                size = sum(path.stat().st_size for path in blocks.folder.iterdir())
                say(f"features of {len(records):,} images are kept in {blocks.folder} ({size / 2**20:,.1f} MiB)")
    return blocks


def _remove_unused(of_weights: Path) -> None:
    """Remove the features of other weights, unless another process is making some."""
    with suppress(FolderBusyError), ExitStack() as stack:
        for folder in of_weights.iterdir():
            stack.enter_context(locked(folder))
        shutil.rmtree(of_weights)
