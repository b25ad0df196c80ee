"""The multi-layer perceptrons behind the encoder: projectors, predictor, parameter embedding (paper, Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

End = Literal["norm", "plain norm", "linear"]


def mlp(dim_in: int, widths: Sequence[int], *, end: End, bias: bool = False) -> nn.Sequential:
    """FC + BN for every width, with ReLU between them: (N, dim_in) -> (N, widths[-1]).

    `end` says what follows the last FC: a BN ("norm"), one that neither scales nor shifts ("plain norm", as in the
    official projectors and predictor), or nothing ("linear").
    The FCs have no bias: the BN behind them would subtract it. `bias`: whether a last FC with nothing behind it has
    one. No widths: the identity.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((dim_in, *widths)):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU(inplace=True)]
    if bias and layers:
        fan_in, fan_out = (dim_in, *widths)[-2:]
        layers[-3] = nn.Linear(fan_in, fan_out)
    if end == "norm":
        return nn.Sequential(*layers[:-1])
    last = [nn.BatchNorm1d(widths[-1], affine=False)] if end == "plain norm" and layers else []
    return nn.Sequential(*layers[:-2], *last)
