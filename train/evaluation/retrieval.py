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
    """Mean reciprocal rank, the shares of ranks 1 and up to 5, and the prediction retrieval error of SIE (Garrido et
    al., 2023): retrieval_mrr, retrieval_hit1, retrieval_hit5, retrieval_pre.

    VIEWS views of every image are drawn from the view policies in turn. Each one's rank is that of its embedding
    among those of all of them, by cosine similarity to the prediction from x and its parameters. A predictor that does
    nothing has 0.211, 0.063 and 0.313. The error is the distance between its parameters, standardised as EquiMod sees
    them, and those of the view that is most alike, divided by the mean distance to all VIEWS: 0 where it is always the
    true one, 1 where it is any.
    """
    policy = views.policy
    many = replace(views, policy=AugmentationPolicy(policy.x, tuple(islice(cycle(policy.views), VIEWS))))
    equimod.eval()
    found = [
        _retrieve(equimod, h_x, h, [view.encoding for view in batch.views])
        for batch, h_x, h in many.represent("retrieval", batch_size=_BATCH_SIZE)
    ]
    rank, of_nearest, of_all = (torch.cat(values).double() for values in zip(*found, strict=True))
    yield "retrieval_mrr", (1 / rank).mean().item()
    for k in (1, 5):
        yield f"retrieval_hit{k}", (rank <= k).double().mean().item()
    yield "retrieval_pre", (of_nearest.mean() / of_all.mean()).item()


def ranks(similarity: Tensor) -> Tensor:
    """Rank of each view by the similarity (N,K,K) of its prediction (second index) to all K of its image: int64 (N,K).

    1 is the best. Equal similarities count as better, so that embeddings that are all the same are worth nothing.
    """
    own = similarity.diagonal(dim1=1, dim2=2)[..., None]
    return (similarity >= own).sum(2)


def similarities(y: Tensor, y_hat: Tensor) -> Tensor:
    """Cosine similarity of the predictions y_hat (K,N,D) to the embeddings y (K,N,D) of K views: (N,K,K) float64."""
    y, y_hat = (F.normalize(value.double(), dim=2).transpose(0, 1) for value in (y, y_hat))
    return y_hat @ y.transpose(1, 2)


def errors(similarity: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each view's parameters (N,K,P) to those of the view most like its prediction, and the mean of those
    to all K: (N,K) each. `similarity` as in `ranks`."""
    distance = torch.cdist(parameters.double(), parameters.double())
    return distance.gather(2, similarity.argmax(2, keepdim=True))[..., 0], distance.mean(2)


@torch.no_grad()
def _retrieve(equimod: EquiMod, h_x: Tensor, h: list[Tensor], encodings: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    embedded = [equimod.embed(h_x, h_v, t)[1:] for h_v, t in zip(h, encodings, strict=True)]
    similarity = similarities(*(torch.stack(of_views) for of_views in zip(*embedded, strict=True)))
    parameters = torch.stack([equimod.standardizer(t) for t in encodings], dim=1)
    of_nearest, of_all = errors(similarity, parameters)
    return ranks(similarity).cpu(), of_nearest.cpu(), of_all.cpu()
