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

_CHUNK = 256  # queries at a time: 1.3 GB of similarities with ImageNet's training set


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
    scores = votes(train, val.h, settings)
    for k in (1, 5):
        yield f"knn_top{k}", top_k(scores, val.label, k)


def votes(train: Features, queries: Tensor, settings: KnnSettings) -> Tensor:
    """Score of every class for queries (M,F): float64 (M,C).

    The k training images of highest cosine similarity s vote for their class with weight exp(s / temperature).
    """
    bank = F.normalize(train.h, dim=1)
    scores = torch.zeros(len(queries), len(train.classes), dtype=torch.float64, device=bank.device)
    chunks = list(zip(queries.split(_CHUNK), scores.split(_CHUNK), strict=True))
    for rows, score in track(chunks, len(chunks), "nearest neighbours", "batches"):
        similarity, neighbour = (F.normalize(rows, dim=1) @ bank.T).topk(min(settings.k, len(train)))
        score.scatter_add_(1, train.label[neighbour], (similarity.double() / settings.temperature).exp())
    return scores
