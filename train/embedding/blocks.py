"""Representations of all images of a data set, block by block: resumable, over ranks, in the order of the source."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.durable import durable_file, remove_leftovers
from equimod.pipelines.errors import EquimodError
from equimod.pipelines.policy import AugmentationPolicy, CenterPolicy
from equimod.pipelines.progress import Progress
from equimod.pipelines.records.protocol import Records, fingerprint
from equimod.pipelines.stored import DamagedFileError, FileDigest, decode_sealed, read_bytes, seal
from equimod.train.distributed import DistInfo, barrier
from equimod.train.environment import code_digests, digest_of
from equimod.train.evaluation.features import BATCH_SIZE, FrozenEncoder

BATCHES = 16  # of a block
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLAN = "plan.json"
_NAME = re.compile(r"block-(\d{6})-([0-9a-f]{16})\.bin")


class EmbeddingError(EquimodError):
    """Representations that cannot be made or read: the message says what helps, in one line."""


@dataclass(frozen=True)
class Plan:
    """What blocks are made of; those of another plan are not gone on with."""

    weights: str  # SHA-256 of the encoder's
    code: str  # digest of equimod's
    x: CenterPolicy
    precision: str  # of the encoder
    table: str  # fingerprint of the records
    content: str
    dates: str
    images: int
    features: int
    dtype: str  # of what is kept
    batch_size: int
    batches: int  # of a block

    @classmethod
    def of(
        cls, weights: str, encoder: FrozenEncoder, x: CenterPolicy, records: Records, dtype: torch.dtype | None = None
    ) -> Plan:
        """`weights`: digest of the encoder's; `dtype`: what blocks hold; None: what the encoder computes in."""
        found, code = fingerprint(records), digest_of(code_digests())
        of_images = (found.table, found.content, found.dates, len(records))
        precision, kept = _name(encoder.dtype), _name(dtype or encoder.dtype)
        return cls(weights, code, x, precision, *of_images, encoder.feature_dim, kept, BATCH_SIZE, BATCHES)

    @property
    def digest(self) -> str:
        """What it is known by."""
        return FileDigest.of_content(seal(asdict(self))).sha256[:16]

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

    def write(self, number: int, h: Tensor) -> None:
        """Keep a block (M,F)."""
        content = h.to(_DTYPES[self.plan.dtype]).view(torch.uint8).numpy().tobytes()
        digest = FileDigest.of_content(content).sha256[:16]
        with durable_file(self.folder / f"block-{number:06}-{digest}.bin") as out:
            out.write(content)

    def __iter__(self) -> Iterator[Tensor]:
        """All blocks (M,F) in order. Raises EmbeddingError where one is not as it was written."""
        paths = self._paths()
        for number in range(len(self.plan)):
            path = paths[number]
            content = read_bytes(path)
            match = _NAME.fullmatch(path.name)
            if match is None or FileDigest.of_content(content).sha256[:16] != match[2]:
                raise EmbeddingError(f"{path} is damaged; remove it and run the same command again")
            yield torch.frombuffer(bytearray(content), dtype=_DTYPES[self.plan.dtype]).view(-1, self.plan.features)

    def load(self) -> Tensor:
        """All blocks as one (N,F)."""
        h = torch.empty(self.plan.images, self.plan.features, dtype=_DTYPES[self.plan.dtype])
        start = 0
        for block in self:
            h[start : start + len(block)] = block
            start += len(block)
        return h

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _paths(self) -> dict[int, Path]:
        return {int(match[1]): path for path in self.folder.glob("block-*") if (match := _NAME.fullmatch(path.name))}


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in _DTYPES.items() if known == dtype)


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
) -> Iterator[tuple[int, Tensor]]:
    """The blocks of these numbers, with their numbers. Those in a row are read ahead of each other."""
    for row in _rows(numbers):
        loaded = pipeline.epoch(0, row[0] * batches)
        for number in row:
            found = [encoder(batch.images) for batch in islice(loaded, batches)]
            yield number, torch.cat(found).cpu()
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
