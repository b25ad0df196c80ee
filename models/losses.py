"""The losses, as pure functions of embeddings (n, D) of this rank's samples.

They gather over the ranks by themselves when a process group is up. Every rank compares its own rows with the
columns of all ranks, which needs a world_size-th of the full matrix, and returns the mean over its own rows:
the mean over the ranks, which is what data-parallel training does with gradients, is exactly the value and the
gradient of one process with the whole batch. Losses of column statistics sum those over the ranks. Computed in
float32 or better, whatever autocast says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.models.gather import gather, rank, sum_over_ranks, world_size

BLOCK = 1024
"""Columns that a contrastive loss compares its rows with at a time, or more, as long as PRODUCTS are not exceeded."""
PRODUCTS = {"cuda": 2**25, "meta": 2**25}
"""Products of a block, by device: a GPU takes few launches for large ones (128 MiB); a CPU's cache holds small ones."""


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
    negatives: Literal["paper", "siblings", "official"] = "paper",
) -> Tensor:
    """Equivariance loss between embeddings y (the paper's z') and their predictions y_hat, all (n, D): a scalar.

    "paper", Eq. 4: l_i = -log(exp(sim(y_i, yhat_i) / temperature) / sum_{k != i, j} exp(sim(y_i, y_k) / temperature)),
    the mean over all 2N views. The views of the same image are neither positives nor negatives, and predictions
    are compared with their own view only. "siblings", the ablation in Sec. 2.2: with k != i, so that the other view of
    the same image is a negative. "official", the authors' code: NT-Xent of the pairs (y_k, yhat_k), the
    mean over all 4N vectors, each of which is a negative of all others.
    ValueError for shapes that differ or are not (n, D), and for Eq. 4 on a global batch of one sample.
    """
    _check_shapes(z_i=z_i, z_j=z_j, zhat_i=zhat_i, zhat_j=zhat_j)
    if negatives == "official":
        return nt_xent(torch.cat([z_i, z_j]), torch.cat([zhat_i, zhat_j]), temperature)
    y, y_hat = _unit(z_i, z_j), _unit(zhat_i, zhat_j)
    attraction = (y * y_hat).sum(1) / temperature
    return (_repulsion(y, temperature, sibling=negatives == "siblings") - attraction).mean()


def byol_loss(q_i: Tensor, q_j: Tensor, t_i: Tensor, t_j: Tensor) -> Tensor:
    """BYOL's loss of predictions q and the other view's target projections t, all (n, D): a scalar.

    The mean over the batch of (2 - 2 cos(q_i, t_j)) + (2 - 2 cos(q_j, t_i)), without a gradient into t.
    ValueError for shapes that differ or are not (n, D). Source: BYOL (Grill et al., 2020), Eq. 2, symmetrised.
    """
    _check_shapes(q_i=q_i, q_j=q_j, t_i=t_i, t_j=t_j)
    cosines = (_unit(q_i, q_j) * _unit(t_j, t_i).detach()).sum(1)
    return 4 - 4 * cosines.mean()


def simsiam_loss(q_i: Tensor, q_j: Tensor, z_i: Tensor, z_j: Tensor) -> Tensor:
    """SimSiam's loss of predictions q and the other view's projections z, all (n, D): a scalar.

    -(cos(q_i, z_j) + cos(q_j, z_i)) / 2, the mean over the batch, without a gradient into z.
    ValueError for shapes that differ or are not (n, D). Source: SimSiam (Chen & He, 2021), Eq. 4.
    """
    _check_shapes(q_i=q_i, q_j=q_j, z_i=z_i, z_j=z_j)
    return -(_unit(q_i, q_j) * _unit(z_j, z_i).detach()).sum(1).mean()


def barlow_twins_loss(z_i: Tensor, z_j: Tensor, lambd: float) -> Tensor:
    """Barlow Twins' loss of the embeddings of two views, both (n, D): a scalar, the same on every rank.

    Columns are standardised over the global batch (biased deviation, eps 1e-5 as in a batch norm); of their
    cross-correlation C it is sum_k (1 - C_kk)^2 + lambd · sum_{k != l} C_kl^2. ValueError for shapes that differ or
    are not (n, D). Source: Barlow Twins (Zbontar et al., 2021), Eq. 1.
    """
    _check_shapes(z_i=z_i, z_j=z_j)
    rows = len(z_i) * world_size()
    with _no_autocast(z_i.device.type):
        a, b = (z * (sum_over_ranks(z.square().sum(0)) / rows + 1e-5).rsqrt() for z in _centred(z_i, z_j))
        correlation = sum_over_ranks(a.T @ b) / rows
    off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
    return (1 - correlation.diagonal()).square().sum() + lambd * off_diagonal


def vicreg_loss(z_i: Tensor, z_j: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """VICReg's loss of the embeddings of two views, both (n, D): a scalar, the mean over ranks of which is the loss.

    invariance · mean squared distance + variance · [v(z_i) + v(z_j)] / 2 + covariance · [c(z_i) + c(z_j)], where v is
    the mean over columns of max(0, 1 - sqrt(Var + 1e-4)) and c the sum of the squared covariances of different
    columns over D, both over the global batch and unbiased. ValueError for shapes that differ or are not (n, D), and
    for a global batch of one sample. Source: VICReg (Bardes et al., 2022), Eq. 6; v halved as in its authors' code.
    """
    _check_shapes(z_i=z_i, z_j=z_j)
    rows, dim = len(z_i) * world_size(), z_i.shape[1]
    if rows < 2:
        raise ValueError("VICReg has no variance in a global batch of 1 sample: use a batch size of 2 or more")
    distance = (_precise(z_i) - _precise(z_j)).square().mean()
    spread, redundancy = distance.new_zeros(()), distance.new_zeros(())
    with _no_autocast(z_i.device.type):
        for z in _centred(z_i, z_j):
            products = sum_over_ranks(z.T @ z) / (rows - 1)
            variances = products.diagonal()
            spread = spread + (1 - (variances + 1e-4).sqrt()).relu().mean()
            redundancy = redundancy + (products.square().sum() - variances.square().sum()) / dim
    return invariance * distance + variance * spread / 2 + covariance * redundancy


def _centred(z_i: Tensor, z_j: Tensor) -> tuple[Tensor, Tensor]:
    """Both (n, D) less the mean of their columns over the global batch, in float32 or better."""
    z = torch.stack([_precise(z_i), _precise(z_j)])
    mean = sum_over_ranks(z.sum(1, keepdim=True)) / (z.shape[1] * world_size())
    z_i, z_j = (z - mean).unbind()
    return z_i, z_j


def _precise(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _check_shapes(**embeddings: Tensor) -> None:
    shapes = {name: tuple(t.shape) for name, t in embeddings.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise ValueError(f"embeddings must all have one shape (n, D), n and D at least 1, not {shapes}")


def _unit(t_i: Tensor, t_j: Tensor) -> Tensor:
    """Both views in one tensor (2n, D), of length 1, in float32 or better."""
    return F.normalize(_precise(torch.cat([t_i, t_j])), dim=1)


def _siblings(t: Tensor) -> Tensor:
    """For every row of [t_i; t_j] the row of the sample's other view."""
    return t.roll(len(t) // 2, dims=0)


def _repulsion(z: Tensor, temperature: float, *, sibling: bool) -> Tensor:
    """log sum_k exp(sim(z_i, z_k) / temperature), of every own row i: k over all ranks but i, with i's sibling or not.

    `z`: unit vectors [z_i; z_j] (2n, D) of this rank. Columns stay as gathered, [z_i; z_j] rank by rank.
    """
    columns = gather(z)
    own = rank() * len(z) + torch.arange(len(z), device=z.device)
    excluded = (own,) if sibling else (own, _siblings(own))
    if len(excluded) == len(columns):
        raise ValueError("Eq. 4 has no negatives in a global batch of 1 sample: use a batch size of 2 or more")
    with _no_autocast(z.device.type):
        return log_sum_exp(z / temperature, columns, excluded)


def log_sum_exp(rows: Tensor, columns: Tensor, excluded: tuple[Tensor, ...]) -> Tensor:
    """log sum_k exp(rows_i · columns_k) over all k but the `excluded`, one of each tensor (R,) for every row: (R,).

    `rows` (R,D), `columns` (C,D). Products are made in blocks of columns and made again for the gradient, so the memory
    is that of a block (BLOCK, PRODUCTS) and not O(R · C).
    """
    result: Tensor = _LogSumExp.apply(rows, columns, torch.stack(excluded, 1))
    return result


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, excluded: Tensor) -> Tensor:
        first, *others = (_logsumexp_(_products(rows, columns, block, excluded)) for block in _blocks(rows, columns))
        total: Tensor = reduce(torch.logaddexp, others, first)
        ctx.save_for_backward(rows, columns, total, excluded)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, total, excluded = ctx.saved_tensors
        of_rows, of_columns = torch.zeros_like(rows), torch.empty_like(columns)
        for block in _blocks(rows, columns):
            softmax = _products(rows, columns, block, excluded).sub_(total[:, None]).exp_().mul_(gradient[:, None])
            of_rows.addmm_(softmax, columns[block])
            torch.mm(softmax.T, rows, out=of_columns[block])
            del softmax  # before the next block is made
        return of_rows, of_columns, None


def _logsumexp_(products: Tensor) -> Tensor:
    """products.logsumexp(1), equal to the bit, without torch's second block of memory."""
    finite = torch.finfo(products.dtype)
    most = products.amax(1, keepdim=True).clamp_(finite.min, finite.max)
    return products.sub_(most).exp_().sum(1).log_().add_(most[:, 0])


def _blocks(rows: Tensor, columns: Tensor) -> Iterator[slice]:
    width = max(BLOCK, PRODUCTS.get(rows.device.type, 0) // max(len(rows), 1))
    return (slice(start, min(start + width, len(columns))) for start in range(0, len(columns), width))


def _products(rows: Tensor, columns: Tensor, block: slice, excluded: Tensor) -> Tensor:
    """rows_i · columns_k for a block of columns, -inf where k is `excluded` (R,E) for i."""
    products = rows @ columns[block].T
    if len(columns) == products.shape[1]:
        return products.scatter_(1, excluded, -torch.inf)
    column = excluded - block.start
    here = column.clamp(0, products.shape[1] - 1)
    most = torch.where(column == here, -torch.inf, torch.inf).to(products.dtype)
    return products.scatter_reduce_(1, here, most, "amin")


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    # "meta", where a step of any size is counted without running it, has no autocast to switch off.
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
