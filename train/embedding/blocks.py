"""Representations of all images of a data set, block by block: resumable, over ranks, in the order of the source."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.durable import durable_file, remove_leftovers
from equimod.pipelines.errors import EquimodError
from equimod.pipelines.policy import AugmentationPolicy, CenterPolicy
from equimod.pipelines.progress import Progress
from equimod.pipelines.records.protocol import Records, fingerprint
from equimod.pipelines.stored import DamagedFileError, FileDigest, decode_sealed, read_bytes, seal
from equimod.train.distributed import DistInfo, barrier
from equimod.train.evaluation.features import BATCH_SIZE, FrozenEncoder

BATCHES = 16  # of a block
PLAN = "plan.json"
_NAME = re.compile(r"block-(\d{6})-([0-9a-f]{16})\.npy")


class EmbeddingError(EquimodError):
    """Representations that cannot be made or read: the message says what helps, in one line."""


@dataclass(frozen=True)
class Plan:
    """What blocks are made of; those of another plan are not gone on with."""

    weights: str  # SHA-256 of the encoder's
    x: CenterPolicy
    precision: str
    table: str  # fingerprint of the records
    content: str
    images: int
    features: int
    batch_size: int
    batches: int  # of a block

    @classmethod
    def of(cls, weights: bytes, x: CenterPolicy, precision: str, records: Records, features: int) -> Plan:
        found = fingerprint(records)
        digest = FileDigest.of_content(weights).sha256
        return cls(digest, x, precision, found.table, found.content, len(records), features, BATCH_SIZE, BATCHES)

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.images // (self.batch_size * self.batches))


@dataclass(frozen=True)
class Blocks:
    """The blocks of a plan in a folder, each under its number and a digest of its content once it is complete."""

    folder: Path
    plan: Plan

    def begin(self) -> list[int]:
        """Take over what the folder, which is held, has. Returns the numbers of the blocks that are missing.

        Raises EmbeddingError where it holds blocks of another plan.
        """
        remove_leftovers(self.folder)
        path = self.folder / PLAN
        if path.exists():
            try:
                before = decode_sealed(read_bytes(path), Plan, str(path))
            except DamagedFileError as error:
                raise EmbeddingError(f"{error}; remove {self.folder} and start anew") from error
            if before != self.plan:
                changed = [name for name, value in asdict(self.plan).items() if asdict(before)[name] != value]
                raise EmbeddingError(
                    f"{self.folder} holds representations of other {', '.join(changed)}; remove it, or give another OUT"
                )
        else:
            with durable_file(path) as out:
                out.write(seal(asdict(self.plan)))
        known = self._paths()
        return [number for number in range(len(self.plan)) if number not in known]

    def write(self, number: int, h: NDArray[np.float32]) -> None:
        """Keep a block (M,F)."""
        buffer = io.BytesIO()
        np.save(buffer, h)
        content = buffer.getvalue()
        digest = FileDigest.of_content(content).sha256[:16]
        with durable_file(self.folder / f"block-{number:06}-{digest}.npy") as out:
            out.write(content)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """All blocks in order. Raises EmbeddingError where one is not as it was written."""
        paths = self._paths()
        for number in range(len(self.plan)):
            path = paths[number]
            content = read_bytes(path)
            match = _NAME.fullmatch(path.name)
            if match is None or FileDigest.of_content(content).sha256[:16] != match[2]:
                raise EmbeddingError(f"{path} is damaged; remove it and run the same command again")
            yield np.load(io.BytesIO(content))

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _paths(self) -> dict[int, Path]:
        return {int(match[1]): path for path in self.folder.glob("block-*") if (match := _NAME.fullmatch(path.name))}


def fill(
    blocks: Blocks,
    missing: Sequence[int],
    encoder: FrozenEncoder,
    records: Records,
    dist_info: DistInfo,
    workers: int | None,
) -> None:
    """Make the blocks that are missing, each rank its share of them, one after the other."""
    plan, shares = blocks.plan, np.array_split(missing, dist_info.world_size)
    policy = AugmentationPolicy(plan.x, views=())
    pipeline = build_pipeline(
        records, policy, batch_size=plan.batch_size, seed=0, device=encoder.device, workers=workers, shuffle=False
    )
    made = _made(pipeline, encoder, [int(number) for number in shares[dist_info.rank]], plan.batches)
    rows = plan.batch_size * plan.batches
    done = max(0, plan.images - len(missing) * rows)  # the last block may be shorter
    with Progress("embedding", "images", total=plan.images, done=done) as progress:
        for turn in range(1, max(map(len, shares)) + 1):
            if (block := next(made, None)) is not None:
                blocks.write(*block)
            barrier(dist_info)  # no rank gets ahead by more than the others may be waited for
            left = sum(len(share[turn:]) for share in shares)
            progress.show(plan.images - left * rows)


def _made(
    pipeline: Pipeline, encoder: FrozenEncoder, numbers: Sequence[int], batches: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The blocks of these numbers, with their numbers. Those in a row are read ahead of each other."""
    for row in _rows(numbers):
        loaded = pipeline.epoch(0, row[0] * batches)
        for number in row:
            found = [encoder(batch.images) for batch in islice(loaded, batches)]
            yield number, torch.cat(found).cpu().numpy()
        loaded.close()


def _rows(numbers: Sequence[int]) -> list[list[int]]:
    """Numbers that ascend, split where one is left out."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and rows[-1][-1] + 1 == number:
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows
