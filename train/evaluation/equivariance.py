"""How equivariant the embeddings y are (paper, Sec. 3.2.2): does the predictor move them to where the view's lie?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.models.equimod import EquiMod
from equimod.pipelines.params import ParamLayout
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import ViewSet
from equimod.train.evaluation.scores import INTERVAL
from equimod.train.evaluation.trained_run import TrainedRun

LEAST_DISSIMILARITY = 1e-6
"""Dissimilarities of Eq. 6 count as at least this much, so that the ratio stays finite for a perfect prediction."""

FORMS = ("absolute", "relative")  # Eq. 5, Eq. 6

_NORMAL_95 = 1.96


SETTINGS: dict[str, Any] = {}


def run(trained: TrainedRun) -> Values:
    """See `measure`: on the validation images. ValueError for a run without EquiMod."""
    return measure(trained.predictor, trained.predictor_views)


def measure(equimod: EquiMod, views: ViewSet) -> Values:
    """Means of Eq. 5 and Eq. 6 over images and views, with half a 95 % interval each.

    Invariance, y_hat = y_x, would give 0 and 1. Also the median of Eq. 6: a few almost perfect predictions outweigh
    all others in its mean. The interval takes images, not views, as independent; it needs two images or more.
    ValueError where the policy encodes other parameters than EquiMod was trained on.
    """
    absolute, relative = displacements(equimod, views)
    for form, values in zip(FORMS, (absolute, relative), strict=True):
        yield from mean_and_interval(f"equivariance_{form}", values.mean(1))
    yield "equivariance_relative_median", relative.quantile(0.5).item()


def displacements(equimod: EquiMod, views: ViewSet) -> tuple[Tensor, Tensor]:
    """Eq. 5 and Eq. 6, float64 (N, views) each. ValueError as `measure`."""
    trained, given = len(equimod.standardizer.mean), len(ParamLayout.shared(views.policy))
    if given != trained:
        raise ValueError(f"policy encodes {given} numbers, EquiMod was trained on {trained}; give the same operators")
    equimod.eval()
    pairs = []
    for batch, h_x, h in views.represent("equivariance"):
        of_views = [_measure(equimod, h_x, h_v, v.encoding) for h_v, v in zip(h, batch.views, strict=True)]
        pairs.append(torch.stack(of_views, dim=1).cpu())
    absolute, relative = torch.cat(pairs).unbind(-1)
    return absolute, relative


def displacement(y_x: Tensor, y_v: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute (Eq. 5) and relative (Eq. 6) displacement towards y_v by the predictor: (N,D) to float64 (N,) each.

    With d = 1 - sim: d(y_v, y_x) - d(y_v, y_hat), and d(y_v, y_x) / d(y_v, y_hat) with both at least
    LEAST_DISSIMILARITY.
    """
    of_x, of_prediction = _dissimilarity(y_v, y_x), _dissimilarity(y_v, y_hat)
    relative = of_x.clamp(min=LEAST_DISSIMILARITY) / of_prediction.clamp(min=LEAST_DISSIMILARITY)
    return of_x - of_prediction, relative


def _dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    # In float64: near a perfect prediction, 1 - sim would be all rounding error in float32.
    return 1 - F.cosine_similarity(a.double(), b.double())


@torch.no_grad()
def _measure(equimod: EquiMod, h_x: Tensor, h_v: Tensor, encoding: Tensor) -> Tensor:
    """Eq. 5 and Eq. 6 of one view of each image: float64 (N,2)."""
    return torch.stack(displacement(*equimod.embed(h_x, h_v, encoding)), dim=-1)


def mean_and_interval(name: str, values: Tensor) -> Values:
    """Mean over independent values (N,), and half its 95 % interval where there are two or more."""
    yield name, values.mean().item()
    if len(values) > 1:
        yield f"{name}{INTERVAL}", _NORMAL_95 * (values.std() / len(values) ** 0.5).item()
