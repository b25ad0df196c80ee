"""Evaluators of a trained run: one file each, with `run(TrainedRun) -> Iterator[(name, value)]` and its `SETTINGS`.

`EVALUATORS` registers a file by its name; train/evaluate.py has an option for each entry. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from equimod.train.evaluation.trained_run import TrainedRun

Values = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Entry:
    help: str
    by_default: bool = False  # without a choice on the command line
    needs_equimod: bool = False
    needs_labels: bool = False
    over_ranks: bool = False  # shared by all ranks; any other runs on the first


class Evaluator(Protocol):
    """What a file of this folder holds."""

    SETTINGS: Mapping[str, Any]  # for eval.json
    run: Callable[[TrainedRun], Values]


EVALUATORS: dict[str, Entry] = {
    "linear_cached": Entry(
        "The linear classifier on features that are computed once, without augmentation.",
        by_default=True,
        needs_labels=True,
    ),
    "knn": Entry("Weighted k-nearest-neighbour classification.", by_default=True, needs_labels=True),
    "equivariance": Entry(
        "Absolute and relative equivariance (Eq. 5 and 6); for runs with EquiMod.", by_default=True, needs_equimod=True
    ),
    "equivariance_per_operator": Entry(
        "The same for each operator alone (Fig. 3 and 4); for runs with EquiMod.", needs_equimod=True
    ),
    "retrieval": Entry(
        "How well the predictor tells 16 views of an image apart, MRR, H@1 and H@5; for runs with EquiMod.",
        needs_equimod=True,
    ),
    "readout": Entry(
        "How much of a view's parameters a linear map recovers from the representations of image and view, R2."
    ),
    "rank": Entry("How many directions the representations use: RankMe, and LiDAR from 50 views of 1,000 images."),
    "few_shot": Entry(
        "5-way 1-shot and 5-shot classification of the validation images, over 2,000 episodes.", needs_labels=True
    ),
    "transfer": Entry(
        "Logistic regression by L-BFGS, its penalty chosen from 45 on held-out training images.", needs_labels=True
    ),
    "robustness": Entry(
        "Accuracy under 15 corruptions of 5 strengths, and how often they change the class (extra robustness).",
        needs_labels=True,
    ),
    "factors": Entry(
        "How much of the numbers in factors.csv beside the images a linear map recovers from the representations, R2."
    ),
    "fine_tune": Entry(
        "Fine-tuning of the whole network with 1, 10 and 100 % of the labels; goes on where it was interrupted.",
        needs_labels=True,
    ),
    "linear": Entry(
        "Linear evaluation of the paper: 90 epochs on augmented images through the frozen encoder; goes on where it "
        "was interrupted, and is shared by the ranks of torchrun.",
        needs_labels=True,
        over_ranks=True,
    ),
}
"""By name, in the order in which they run: the quickest first."""


def load(name: str) -> Evaluator:
    """The evaluator of that name, which may import torch."""
    return cast(Evaluator, import_module(f"{__name__}.{name}"))
