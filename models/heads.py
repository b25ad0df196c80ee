"""The multi-layer perceptrons behind the encoder: projectors, predictor, parameter embedding (paper, Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(dim_in: int, widths: Sequence[int], *, last_affine: bool) -> nn.Sequential:
    """FC + BN for every width, with ReLU between them: (N, dim_in) -> (N, widths[-1]).

    `last_affine`: does the last BN scale and shift (it does not in the official projectors and predictor).
    The FCs have no bias: the BN behind them would take it out again. No widths: the identity.
    """
    layers: list[nn.Module] = []
    for layer, (fan_in, fan_out) in enumerate(pairwise((dim_in, *widths)), start=1):
        last = layer == len(widths)
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out, affine=last_affine or not last)]
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
