"""Where boxes lie: in the non-augmented image after its resize, and in a smaller copy of an image.

Nothing here opens a shared library, so that drawing parameters does not depend on what installation could compile.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.policy import CenterPolicy


def center_geometry(width: int, height: int, policy: CenterPolicy) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where torchvision places Resize + CenterCrop: (width, height) after the resize and (left, top) of the crop."""
    short, long = min(width, height), max(width, height)
    new_long = int(policy.resize * long / short)
    new_width, new_height = (policy.resize, new_long) if width <= height else (new_long, policy.resize)
    return (new_width, new_height), (round((new_width - policy.size) / 2), round((new_height - policy.size) / 2))


def stored_box(box: Tensor, size: NDArray[np.int32], stored_size: NDArray[np.int32]) -> Tensor:
    """Boxes of original images in the pixels of smaller copies: edges scaled and rounded, at least a pixel apart.

    `box` int64 (N,4) x, y, width, height; `size` and `stored_size` (N,2) width and height of original and copy.
    Where both are equal, and so in all records without smaller copies, boxes stay as they are.
    """
    if np.array_equal(size, stored_size):
        return box
    original, copy = (torch.from_numpy(a.astype(np.int64)) for a in (size, stored_size))
    first = (box[:, :2] * copy / original).round().long().minimum(copy - 1)
    last = ((box[:, :2] + box[:, 2:]) * copy / original).round().long()
    return torch.cat([first, last.maximum(first + 1) - first], dim=1)
