"""Logistic regression on frozen representations, its penalty chosen on held-out images: how transfer is measured."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.pipelines.progress import track
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import Features, top_k
from equimod.train.evaluation.trained_run import TrainedRun


@dataclass(frozen=True)
class TransferSettings:
    """The sweep of SimCLR (Chen et al., 2020, B.8) and AugSelf (Lee et al., 2021)."""

    penalties: int = 45
    smallest: float = 1e-6
    largest: float = 1e5
    held_out: int = 5  # the penalty is chosen on every fifth training image
    iterations: int = 500  # of L-BFGS for each penalty, which starts from the weights of the one before


SETTINGS = asdict(TransferSettings())
_TOLERANCE = 1e-7  # of the gradient's largest component


def run(trained: TrainedRun) -> Values:
    """See `measure`: from the training images to the validation images."""
    return measure(trained.train_features.float(), trained.val_features.float())


def measure(train: Features, val: Features, settings: TransferSettings = TransferSettings()) -> Values:
    """transfer_top1 and transfer_per_class_top1 (mean over the classes) in percent, and transfer_penalty, the chosen.

    The penalty with the best top-1 on the held-out images is chosen, the largest of equals; then it is fitted to all
    training images.
    """
    penalties = torch.logspace(math.log10(settings.largest), math.log10(settings.smallest), settings.penalties).tolist()
    held = torch.arange(len(train)) % settings.held_out == 0
    fitted, chosen_on = _rows(train, ~held), _rows(train, held)
    weights = torch.zeros(1 + train.h.shape[1], len(train.classes), dtype=train.h.dtype, device=train.h.device)
    best, penalty, of_best = -1.0, math.nan, weights
    for p in track(penalties, len(penalties), "transfer", "penalties"):
        weights = fit(fitted, p, weights, settings.iterations)
        if (score := top_k(logits(chosen_on.h, weights), chosen_on.label, 1)) > best:
            best, penalty, of_best = score, p, weights
    found = logits(val.h, fit(train, penalty, of_best, settings.iterations))
    yield "transfer_top1", top_k(found, val.label, 1)
    of_classes = [val.label == c for c in val.label.unique()]
    yield "transfer_per_class_top1", statistics.mean(top_k(found[rows], val.label[rows], 1) for rows in of_classes)
    yield "transfer_penalty", penalty


def fit(train: Features, penalty: float, start: Tensor, iterations: int) -> Tensor:
    """Weights (1+F,C), the first row for 1, of the multinomial logistic regression, by L-BFGS from `start`.

    They minimise the mean cross-entropy plus half of `penalty` times the squared weights of the features.
    """
    weights = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [weights], max_iter=iterations, tolerance_grad=_TOLERANCE, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        search.zero_grad()
        value = F.cross_entropy(logits(train.h, weights), train.label) + penalty / 2 * weights[1:].square().sum()
        value.backward()
        return value.item()

    search.step(loss)
    return weights.detach()


def logits(h: Tensor, weights: Tensor) -> Tensor:
    """(N,C) of representations (N,F)."""
    return torch.addmm(weights[:1], h, weights[1:])


def _rows(features: Features, rows: Tensor) -> Features:
    rows = rows.to(features.h.device)
    return Features(features.h[rows], features.label[rows], features.classes)
