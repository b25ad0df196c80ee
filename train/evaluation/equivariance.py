"""How equivariant the embeddings y are (paper, Sec. 3.2.2): does the predictor move them to where the view's lie?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.models.equimod import EquiMod
from equimod.pipelines.params import ParamLayout
from equimod.pipelines.policy import AugmentationPolicy, one_by_one
from equimod.pipelines.records.protocol import Records
from equimod.train.evaluation.features import FrozenEncoder, represent

LEAST_DISSIMILARITY = 1e-6
"""Dissimilarities of Eq. 6 count as at least this much, so that the ratio stays finite for a perfect prediction."""

FORMS = ("absolute", "relative")  # Eq. 5, Eq. 6

_NORMAL_95 = 1.96


def run(
    encoder: FrozenEncoder,
    equimod: EquiMod,
    records: Records,
    policy: AugmentationPolicy,
    *,
    seed: int,
    workers: int | None = None,
) -> Iterator[tuple[str, float]]:
    """Means of Eq. 5 and Eq. 6 over the images of `records` and the views of `policy`, with half a 95 % interval each.

    Invariance, y_hat = y_x, would give 0 and 1. Also the median of Eq. 6: a few almost perfect predictions outweigh
    all others in its mean. The interval takes images, not views, as independent; it needs two images or more.
    ValueError where `policy` encodes other parameters than EquiMod was trained on.
    """
    absolute, relative = _displacements(encoder, equimod, records, policy, seed, workers)
    for form, values in zip(FORMS, (absolute, relative), strict=True):
        yield from _mean_and_interval(f"equivariance_{form}", values.mean(1))
    yield "equivariance_relative_median", relative.quantile(0.5).item()


def run_per_operator(
    encoder: FrozenEncoder,
    equimod: EquiMod,
    records: Records,
    policy: AugmentationPolicy,
    *,
    seed: int,
    workers: int | None = None,
) -> Iterator[tuple[str, float]]:
    """The same means for each operator of `policy` alone, with half a 95 % interval each (paper, Fig. 3 and 4).

    Named such as equivariance_absolute_crop and equivariance_absolute_crop_ci95. The one that is measured is always
    applied, the others never, and the crop shows what x shows where it is not the one.
    """
    views = one_by_one(policy)
    alone = AugmentationPolicy(policy.x, tuple(views.values()))
    for form, values in zip(FORMS, _displacements(encoder, equimod, records, alone, seed, workers), strict=True):
        for column, operator in enumerate(views):
            yield from _mean_and_interval(f"equivariance_{form}_{operator}", values[:, column])


def _displacements(
    encoder: FrozenEncoder,
    equimod: EquiMod,
    records: Records,
    policy: AugmentationPolicy,
    seed: int,
    workers: int | None,
) -> tuple[Tensor, Tensor]:
    """Eq. 5 and Eq. 6, float64 (N, views) each."""
    trained, given = len(equimod.standardizer.mean), len(ParamLayout.shared(policy))
    if given != trained:
        raise ValueError(f"policy encodes {given} numbers, EquiMod was trained on {trained}; give the same operators")
    equimod.eval()
    pairs = []
    for batch, h_x, h in represent(encoder, records, policy, "equivariance", seed=seed, workers=workers):
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


def _mean_and_interval(name: str, values: Tensor) -> Iterator[tuple[str, float]]:
    """Mean over independent values (N,), and half its 95 % interval."""
    yield name, values.mean().item()
    yield f"{name}_ci95", _NORMAL_95 * (values.std() / len(values) ** 0.5).item()
