"""Does the predictor tell the views of an image apart? It ranks them by their likeness to its prediction for one."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.models.equimod import EquiMod
from equimod.pipelines.policy import AugmentationPolicy
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import ViewSet
from equimod.train.evaluation.trained_run import TrainedRun

VIEWS = 16
_BATCH_SIZE = 32  # images, each with all its views


SETTINGS = {"views": VIEWS}


def run(trained: TrainedRun) -> Values:
    """See `measure`: on the validation images. ValueError for a run without EquiMod."""
    return measure(trained.predictor, trained.predictor_views)


def measure(equimod: EquiMod, views: ViewSet) -> Values:
    """Mean reciprocal rank, and the shares of ranks 1 and up to 5: retrieval_mrr, retrieval_hit1, retrieval_hit5.

    VIEWS views of every image are drawn from the view policies in turn. Each one's rank is that of its embedding
    among those of all of them, by cosine similarity to the prediction from x and its parameters. A predictor that does
    nothing has 0.211, 0.063 and 0.313.
    """
    policy = views.policy
    many = replace(views, policy=AugmentationPolicy(policy.x, tuple(islice(cycle(policy.views), VIEWS))))
    equimod.eval()
    found = [
        _ranks(equimod, h_x, h, [view.encoding for view in batch.views]).cpu()
        for batch, h_x, h in many.represent("retrieval", batch_size=_BATCH_SIZE)
    ]
    rank = torch.cat(found).double()
    yield "retrieval_mrr", (1 / rank).mean().item()
    for k in (1, 5):
        yield f"retrieval_hit{k}", (rank <= k).double().mean().item()


def ranks(y: Tensor, y_hat: Tensor) -> Tensor:
    """Rank of view k's embedding y (K,N,D) for its prediction y_hat (K,N,D) among the K of its image: int64 (N,K).

    1 is the best. Equal similarities count as better, so that embeddings that are all the same are worth nothing.
    """
    y, y_hat = (F.normalize(value.double(), dim=2).transpose(0, 1) for value in (y, y_hat))
    similarity = y_hat @ y.transpose(1, 2)  # (N,K,K), prediction by view
    own = similarity.diagonal(dim1=1, dim2=2)[..., None]
    return (similarity >= own).sum(2)


@torch.no_grad()
def _ranks(equimod: EquiMod, h_x: Tensor, h: list[Tensor], encodings: list[Tensor]) -> Tensor:
    embedded = [equimod.embed(h_x, h_v, t)[1:] for h_v, t in zip(h, encodings, strict=True)]
    y, y_hat = (torch.stack(of_views) for of_views in zip(*embedded, strict=True))
    return ranks(y, y_hat)
