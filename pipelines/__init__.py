"""From what lies on disk to views with their parameters.

`Augment` and `Augmented` are here for loops with a loader of their own; everything else is imported from its module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equimod.pipelines.augment import Augment, Augmented

__all__ = ["Augment", "Augmented"]


def __getattr__(name: str) -> Any:  # only when asked for: torch takes seconds to import
    if name in __all__:
        return getattr(import_module("equimod.pipelines.augment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
