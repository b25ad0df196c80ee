"""How much of what was drawn or noted of an image, beside its class, a linear map recovers from its representation.

An invariant representation has no use for what augmentations change, such as hue, place and size; this says how much of
it is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from equimod.pipelines.progress import track
from equimod.train.config import ConfigError
from equimod.train.evaluation import Values
from equimod.train.evaluation.factor_table import read_factors
from equimod.train.evaluation.ridge import error_and_variance, fit, products
from equimod.train.evaluation.trained_run import TrainedRun

RIDGES = tuple(10.0**exponent for exponent in range(-6, 2))
"""Penalties to choose from, see `ridge.fit`."""
HELD_OUT = 5
"""The penalty is chosen on every fifth training image, with weights fitted to the others."""
PERIODS = {"hue": 1.0, "background_hue": 1.0, "angle": 360.0}
"""Factors of these names go round in a circle: what is recovered is their sine and cosine."""


SETTINGS = {"ridges": RIDGES, "held_out": 1 / HELD_OUT}


def run(trained: TrainedRun) -> Values:
    """See `measure`: fitted to x of the training images, on x of the validation images. ConfigError as `read_factors`,
    and where both have no factor in common."""
    of_train = _only(trained.config.data or ())
    of_val = _only(trained.config.val or trained.config.data or ())
    train, val = read_factors(of_train, trained.train), read_factors(of_val, trained.val)
    if not train.keys() & val.keys():
        raise ConfigError(
            f"the factors of {of_train} ({', '.join(train)}) and {of_val} ({', '.join(val)}) have no name in common; "
            "give both the same columns"
        )
    return measure(trained.train_features.h.float(), train, trained.val_features.h.float(), val)


def _only(paths: Sequence[Path]) -> Path:
    if len(paths) != 1:
        raise ConfigError(f"--factors knows those of one source, and these are {len(paths)}; convert them into one")
    return paths[0]


def measure(h_train: Tensor, train: Mapping[str, Tensor], h_val: Tensor, val: Mapping[str, Tensor]) -> Values:
    """R2 on `val` of a ridge regression fitted to `train`, for each factor of both, such as factors_r2_hue.

    `h_train`, `h_val`: representations (N,F); `train`, `val`: factors (N,) by name, NaN where an image has none. 1
    where h tells the factor exactly and linearly, 0 where it tells no more than the mean does; it may be negative. A
    factor that never varies is left out.
    """
    h_train, h_val = h_train.double(), h_val.double()
    of_both = [name for name in train if name in val]
    for name in track(of_both, len(of_both), "reading out", "factors"):
        score = _score(h_train, train[name], h_val, val[name], PERIODS.get(name))
        if not math.isnan(score):
            yield f"factors_r2_{name}", score


def _score(h_train: Tensor, train: Tensor, h_val: Tensor, val: Tensor, period: float | None) -> float:
    """R2 of one factor, over sine and cosine together where it has a period; NaN where it never varies."""
    (h, known), (h_test, test) = ((rows[~y.isnan()], y[~y.isnan()]) for rows, y in ((h_train, train), (h_val, val)))
    if min(len(known.unique()), len(test.unique())) < 2:
        return math.nan
    center = known.mean()  # a mean that is large beside the deviation would take the digits of the variance
    y, y_test = (_targets(values - (0 if period else center), period).to(h.device) for values in (known, test))
    held = torch.arange(len(y), device=h.device) % HELD_OUT == 0
    of_fitted, of_held = products(h[~held], y[~held]), products(h[held], y[held])
    features = h.shape[1]

    def error(ridge: float) -> float:
        weights = fit(of_fitted / (~held).sum(), features=features, ridge=ridge)
        return error_and_variance(weights, of_held / held.sum())[0].sum().item()

    weights = fit((of_fitted + of_held) / len(y), features=features, ridge=min(RIDGES, key=error))
    left, variance = error_and_variance(weights, products(h_test, y_test) / len(y_test))
    return 1 - (left.sum() / variance.sum()).item()


def _targets(values: Tensor, period: float | None) -> Tensor:
    """What is to be recovered of a factor (N,): itself (N,1), or sine and cosine (N,2) of one that has a period."""
    if period is None:
        return values[:, None]
    angle = 2 * math.pi / period * values
    return torch.stack([angle.sin(), angle.cos()], dim=1)
