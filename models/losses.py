"""The losses, as pure functions of embeddings (n, D) of this rank's samples.

They gather over the ranks by themselves when a process group is up. Every rank compares its own rows with the
columns of all ranks, which needs a world_size-th of the full matrix, and returns the mean over its own rows:
the mean over the ranks, which is what data-parallel training does with gradients, is exactly the value and the
gradient of one process with the whole batch. Computed in float32 or better, whatever autocast says.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.models.gather import gather, rank


def nt_xent(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    """NT-Xent of the pairs (z_i[k], z_j[k]), both (n, D), over the global batch: a scalar.

    l_i = -log(exp(sim(z_i, z_j) / temperature) / sum_{k != i} exp(sim(z_i, z_k) / temperature)), the mean over
    all 2N embeddings. ValueError for shapes that differ or are not (n, D). Source: SimCLR (Chen et al., 2020).
    """
    _check_shapes(z_i=z_i, z_j=z_j)
    z = _unit(z_i, z_j)
    attraction = (z * _siblings(z)).sum(1) / temperature
    return (_repulsion(z, temperature, sibling=True) - attraction).mean()


def equimod_loss(
    z_i: Tensor,
    z_j: Tensor,
    zhat_i: Tensor,
    zhat_j: Tensor,
    temperature: float,
    negatives: Literal["paper", "official"] = "paper",
) -> Tensor:
    """Equivariance loss between embeddings y (the paper's z') and their predictions y_hat, all (n, D): a scalar.

    "paper", Eq. 4: l_i = -log(exp(sim(y_i, yhat_i) / temperature) / sum_{k != i, j} exp(sim(y_i, y_k) / temperature)),
    the mean over all 2N views. The views of the same image are neither positives nor negatives, and predictions
    are compared with their own view only. "official", the authors' code: NT-Xent of the pairs (y_k, yhat_k), the
    mean over all 4N vectors, each of which is a negative of all others.
    ValueError for shapes that differ or are not (n, D), and for Eq. 4 on a global batch of one sample.
    """
    _check_shapes(z_i=z_i, z_j=z_j, zhat_i=zhat_i, zhat_j=zhat_j)
    if negatives == "official":
        return nt_xent(torch.cat([z_i, z_j]), torch.cat([zhat_i, zhat_j]), temperature)
    y, y_hat = _unit(z_i, z_j), _unit(zhat_i, zhat_j)
    attraction = (y * y_hat).sum(1) / temperature
    return (_repulsion(y, temperature, sibling=False) - attraction).mean()


def _check_shapes(**embeddings: Tensor) -> None:
    shapes = {name: tuple(t.shape) for name, t in embeddings.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise ValueError(f"embeddings must all have one shape (n, D), n and D at least 1, not {shapes}")


def _unit(t_i: Tensor, t_j: Tensor) -> Tensor:
    """Both views in one tensor (2n, D), of length 1, in float32 or better."""
    t = torch.cat([t_i, t_j])
    return F.normalize(t.to(torch.promote_types(t.dtype, torch.float32)), dim=1)


def _siblings(t: Tensor) -> Tensor:
    """For every row of [t_i; t_j] the row of the sample's other view."""
    return t.roll(len(t) // 2, dims=0)


def _repulsion(z: Tensor, temperature: float, *, sibling: bool) -> Tensor:
    """log sum_k exp(sim(z_i, z_k) / temperature), of every own row i: k over all ranks but i, with i's sibling or not.

    `z`: unit vectors [z_i; z_j] (2n, D) of this rank. Columns stay as gathered, [z_i; z_j] rank by rank.
    """
    columns = gather(z)
    own = rank() * len(z) + torch.arange(len(z), device=z.device)
    excluded = own[:, None] if sibling else torch.stack([own, _siblings(own)], dim=1)
    if excluded.shape[1] == len(columns):
        raise ValueError("Eq. 4 has no negatives in a global batch of 1 sample: use a batch size of 2 or more")
    with _no_autocast(z.device.type):
        similarities = (z / temperature) @ columns.T
    return similarities.scatter_(1, excluded, -torch.inf).logsumexp(1)


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    # "meta", where a step of any size is counted without running it, has no autocast to switch off.
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
