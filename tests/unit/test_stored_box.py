"""Boxes of originals in the pixels of smaller copies."""

from __future__ import annotations

import numpy as np
import torch

from equimod.pipelines.geometry import stored_box
from equimod.pipelines.params import draw
from equimod.pipelines.policy import POLICIES


def _boxes(count: int = 2000) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    size = rng.integers(1, 3000, (count, 2)).astype(np.int32)
    policy = POLICIES["simclr_imagenet"].views[0]
    return draw(policy, size, np.arange(count), seed=0, epoch=0, view=0).crop, size


def test_boxes_of_images_stored_in_full_stay_as_they_are() -> None:
    boxes, size = _boxes()
    assert torch.equal(stored_box(boxes, size, size.copy()), boxes)


def test_boxes_lie_inside_the_copy_and_hold_a_pixel() -> None:
    boxes, size = _boxes()
    for side in (1, 7, 224, 500):
        scale = np.minimum(1, side / size.max(axis=1, keepdims=True))
        stored = np.maximum(1, (size * scale).round()).astype(np.int32)
        x, y, width, height = stored_box(boxes, size, stored).T
        assert (x >= 0).all()
        assert (y >= 0).all()
        assert (width >= 1).all()
        assert (height >= 1).all()
        assert (x + width <= torch.from_numpy(stored[:, 0])).all()
        assert (y + height <= torch.from_numpy(stored[:, 1])).all()


def test_edges_move_by_half_a_pixel_of_the_copy_at_most() -> None:
    boxes, size = _boxes()
    stored = (size // 4 + 40).astype(np.int32)
    mapped = stored_box(boxes, size, stored).double()
    scale = torch.from_numpy(stored / size)
    edges = torch.cat([boxes[:, :2] * scale, (boxes[:, :2] + boxes[:, 2:]) * scale], dim=1)
    found = torch.cat([mapped[:, :2], mapped[:, :2] + mapped[:, 2:]], dim=1)
    large = (mapped[:, 2:] > 1).all(dim=1)  # a box of one pixel may have been widened to it
    assert large.sum() > 1000
    assert (found - edges)[large].abs().max() <= 0.5 + 1e-9


def test_a_box_of_the_whole_original_is_the_whole_copy() -> None:
    size = np.array([[500, 375], [1000, 3]], dtype=np.int32)
    stored = np.array([[256, 192], [256, 1]], dtype=np.int32)
    whole = torch.cat([torch.zeros(2, 2, dtype=torch.long), torch.from_numpy(size).long()], dim=1)
    assert stored_box(whole, size, stored)[:, 2:].tolist() == stored.tolist()
