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
    """Where torchvision places Resize + CenterCrop: (width, height) after the resize and (left, top) of the crop.

    `width` and `height` are those of the original: a smaller copy that is resized to the same size shows the same.
    """
    short, long = min(width, height), max(width, height)
    new_long = int(policy.resize * long / short)
    new_width, new_height = (policy.resize, new_long) if width <= height else (new_long, policy.resize)
    return (new_width, new_height), (round((new_width - policy.size) / 2), round((new_height - policy.size) / 2))


GRID = 2**20
"""Steps of a pixel that boxes of smaller copies lie on: sums and differences of their edges are exact in float64."""


def stored_box(box: Tensor, size: NDArray[np.int32], stored_size: NDArray[np.int32]) -> Tensor:
    """Boxes of original images in the pixels of smaller copies: the same boxes, with fractions, to 2^-21 of a pixel.

    `box` int64 (N,4) x, y, width, height; `size` and `stored_size` (N,2) width and height of original and copy. Returns
    float64 (N,4). Where both sizes are equal, and so in all records without smaller copies, boxes stay as they are.
    """
    original, copy = (torch.from_numpy(a.astype(np.float64)) for a in (size, stored_size))
    first, last = box[:, :2], box[:, :2] + box[:, 2:]
    first, last = ((edge * copy / original * GRID).round() / GRID for edge in (first, last))
    return torch.cat([first, last - first], dim=1)


def whole_box(box: Tensor, stored_size: NDArray[np.int32]) -> Tensor:
    """The nearest boxes of whole pixels, at least a pixel wide and high: no edge moves further than half a pixel.

    But for boxes that are smaller than a pixel. `box` float64 (N,4) x, y, width, height in images of `stored_size`
    (N,2). Returns int64 (N,4).
    """
    end = torch.from_numpy(stored_size.astype(np.int64))
    first = box[:, :2].round().long().minimum(end - 1)
    last = (box[:, :2] + box[:, 2:]).round().long()
    return torch.cat([first, last.maximum(first + 1) - first], dim=1)
