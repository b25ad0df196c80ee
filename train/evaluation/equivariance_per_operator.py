"""How equivariant the embeddings are to each operator alone (paper, Fig. 3 and 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from equimod.models.equimod import EquiMod
from equimod.pipelines.policy import AugmentationPolicy, one_by_one
from equimod.train.evaluation import Values
from equimod.train.evaluation.equivariance import FORMS, displacements, mean_and_interval
from equimod.train.evaluation.features import ViewSet
from equimod.train.evaluation.trained_run import TrainedRun

SETTINGS: dict[str, Any] = {}


def run(trained: TrainedRun) -> Values:
    """See `measure`: on the validation images. ValueError for a run without EquiMod."""
    return measure(trained.predictor, trained.predictor_views)


def measure(equimod: EquiMod, views: ViewSet) -> Values:
    """Means of Eq. 5 and Eq. 6 for each operator of the policy alone, with half a 95 % interval each.

    Named such as equivariance_absolute_crop and equivariance_absolute_crop_ci95. The one that is measured is always
    applied, the others never, and the crop shows what x shows where it is not the one.
    """
    alone = one_by_one(views.policy)
    views = replace(views, policy=AugmentationPolicy(views.policy.x, tuple(alone.values())))
    for form, values in zip(FORMS, displacements(equimod, views), strict=True):
        for column, operator in enumerate(alone):
            yield from mean_and_interval(f"equivariance_{form}_{operator}", values[:, column])
