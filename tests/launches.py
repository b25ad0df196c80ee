"""How many kernels operations would launch on a GPU, counted on "meta" or on the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_LAUNCH_NOTHING = {*_ALLOCATIONS, "detach", "_unsafe_view", "promote_types", "scalar_tensor"}
_COMPOSED = {"logsumexp": 9}  # amax, abs, eq, masked_fill, sub, exp, sum, log, add
_CAT_AT_ONCE = 64  # inputs that are no plain memory


class Launches(TorchDispatchMode):
    """Launches inside, by the name of the operation. An operation on one tensor counts as one; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()
        self.largest = 0  # bytes of a tensor that was made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if name.startswith("_record_function"):
            return out
        if name.startswith("_foreach_"):
            self.of[name] += _of_foreach([a for a in args if isinstance(a, list | tuple)])
        elif name == "cat":
            self.of[name] += -(-len(args[0]) // _CAT_AT_ONCE)
        elif name not in _LAUNCH_NOTHING and not func.is_view:
            self.of[name] += _COMPOSED.get(name, 1)
        made = [t.nbytes for t in tree_leaves(out) if isinstance(t, Tensor) and not func.is_view]
        self.largest = max(self.largest, *made, 0)
        return out


def _of_foreach(lists: list[Any]) -> int:
    """One where all lists hold tensors alike in type and layout, else one a tensor (ATen/native/ForeachUtils.h)."""
    first, *others = lists
    alike = all(
        (a.dtype, a.shape, _layout(a)) == (b.dtype, b.shape, _layout(b)) and a.dtype == first[0].dtype and _dense(a)
        for other in [first, *others]
        for a, b in zip(first, other, strict=True)
    )
    return 1 if alike else len(first)


def _layout(t: Tensor) -> list[int]:
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1]


def _dense(t: Tensor) -> bool:
    return t.is_contiguous() or (t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last))
