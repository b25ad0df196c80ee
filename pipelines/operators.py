"""What carries parameters out in a pipeline: Triton kernels on a GPU, eager operators elsewhere."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from equimod.pipelines import ops
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import POLICIES, CenterPolicy, ViewPolicy


class Operators(Protocol):
    """Operators on one kind of device. x is a view of a CenterPolicy, without parameters."""

    description: str

    def table(self, params: AugmentationParams | None, policy: ViewPolicy | CenterPolicy) -> Tensor:
        """What they need of the parameters on the device, on the host."""
        ...

    def __call__(
        self,
        images: Tensor,
        params: AugmentationParams | None,
        table: Tensor,
        policy: ViewPolicy | CenterPolicy,
        out: Tensor,
    ) -> None:
        """Images uint8 (N,3,S,S) to `out` (N,3,S,S), channels_last, normalised; all but `params` on the device."""
        ...


class EagerOperators:
    """`ops.apply` and `ops.apply_center`."""

    def __init__(self, description: str = "eager") -> None:
        self.description = description

    def table(self, params: AugmentationParams | None, policy: ViewPolicy | CenterPolicy) -> Tensor:
        """Empty: `ops.apply` takes to the device what it needs."""
        return torch.empty(0)

    def __call__(
        self,
        images: Tensor,
        params: AugmentationParams | None,
        table: Tensor,
        policy: ViewPolicy | CenterPolicy,
        out: Tensor,
    ) -> None:
        """See `Operators`."""
        if isinstance(policy, CenterPolicy):
            ops.apply_center(images, policy, out)
        else:
            assert params is not None
            ops.apply(images, params, policy, out)


class TritonOperators:
    """`triton_ops.apply`."""

    description = "Triton kernels"

    def __init__(self) -> None:
        from equimod.pipelines import triton_ops  # only now: triton is there for GPUs

        self._triton_ops = triton_ops

    def table(self, params: AugmentationParams | None, policy: ViewPolicy | CenterPolicy) -> Tensor:
        """See `triton_ops.table`."""
        return self._triton_ops.table(params, policy)

    def __call__(
        self,
        images: Tensor,
        params: AugmentationParams | None,
        table: Tensor,
        policy: ViewPolicy | CenterPolicy,
        out: Tensor,
    ) -> None:
        """See `Operators`."""
        self._triton_ops.apply(images, table, policy, out)


def operators_for(device: torch.device) -> Operators:
    """The fastest that work on a device. Kernels are tried out, since they need a C compiler and Python's headers."""
    if device.type != "cuda":
        return EagerOperators()
    try:
        operators = TritonOperators()
        images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
        view = POLICIES["byol_cifar10"].views[0]  # which takes every kernel
        with torch.cuda.device(device):
            operators(images, None, operators.table(None, view).to(device), view, images.float())
    except Exception as error:  # whatever a compiler, a driver or a version of triton raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return EagerOperators(f"eager, which is slower: Triton's kernels do not run here ({reason})")
    return operators
