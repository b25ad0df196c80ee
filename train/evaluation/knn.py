"""Weighted k-nearest-neighbour classification of the representations (Wu et al., 2018)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.pipelines.progress import track
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import Features, top_k

if TYPE_CHECKING:  # which imports the training, which validates by neighbours
    from equimod.train.evaluation.trained_run import TrainedRun

QUERIES, BANK = 256, 65_536
"""Similarities that are computed at a time, 64 MiB of them, whatever the number of images."""


@dataclass(frozen=True)
class KnnSettings:
    k: int = 200  # or all training images, where they are fewer
    temperature: float = 0.07


SETTINGS = asdict(KnnSettings())


def run(trained: TrainedRun) -> Values:
    """See `classify`: validation images by their neighbours in the training set."""
    return classify(trained.train_features, trained.val_features)


def classify(train: Features, val: Features, settings: KnnSettings = KnnSettings()) -> Values:
    """knn_top1 and knn_top5 in percent: images of `val` classified by their neighbours in `train`."""
    scores = votes(train, val.h.float(), settings)
    for k in (1, 5):
        yield f"knn_top{k}", top_k(scores, val.label, k)


def votes(train: Features, queries: Tensor, settings: KnnSettings) -> Tensor:
    """Score of every class for queries (M,F): float64 (M,C).

    The k training images of highest cosine similarity s vote for their class with weight exp(s / temperature).
    """
    scores = torch.zeros(len(queries), len(train.classes), dtype=torch.float64, device=train.h.device)
    # As F.normalize, without a second copy of the features.
    lengths = torch.cat([rows.float().norm(dim=1) for rows in train.h.split(BANK)]).clamp_min_(1e-12)
    chunks = list(zip(queries.split(QUERIES), scores.split(QUERIES), strict=True))
    for rows, score in track(chunks, len(chunks), "nearest neighbours", "batches"):
        similarity, neighbour = _nearest(F.normalize(rows, dim=1), train.h, lengths, min(settings.k, len(train)))
        score.scatter_add_(1, train.label[neighbour], (similarity.double() / settings.temperature).exp())
    return scores


def _nearest(queries: Tensor, bank: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest cosine similarities of queries (M,F) of length 1 to `bank` (N,F), and their rows in it: (M,k)."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), BANK):
        block = slice(start, start + BANK)
        similarity = queries @ bank[block].float().T / lengths[block]
        here, columns = similarity.topk(min(k, similarity.shape[1]))
        best, order = torch.cat([best, here], dim=1).topk(min(k, best.shape[1] + here.shape[1]))
        rows = torch.cat([rows, start + columns], dim=1).gather(1, order)
    return best, rows
