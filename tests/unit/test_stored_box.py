"""Boxes of originals in the pixels of smaller copies: those that were drawn."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.geometry import stored_box, whole_box
from equimod.pipelines.params import draw
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.resize import center_crop_specs, crop_specs

SIDES = (1, 7, 224, 500)


def _boxes(count: int = 2000) -> tuple[Tensor, NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    size = rng.integers(1, 4000, (count, 2)).astype(np.int32)
    policy = POLICIES["simclr_imagenet"].views[0]
    return draw(policy, size, np.arange(count), seed=0, epoch=0, view=0).crop, size


def _smaller(size: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """Sizes of the copies of --max-side."""
    return np.maximum(1, (size * np.minimum(1, side / size.max(axis=1, keepdims=True))).round()).astype(np.int32)


def _edges(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _moved(drawn: Tensor, carried_out: Tensor, size: NDArray[np.int32], stored: NDArray[np.int32]) -> float:
    """The largest distance, in pixels of the original, between edges of boxes drawn and carried out in the copy."""
    specs = crop_specs(carried_out.numpy(), 224, "bicubic")
    found = np.stack([specs[name] for name in ("x", "y", "width", "height")], axis=1)
    return float(np.abs(_edges(found) * np.tile(size / stored, 2) - _edges(drawn.numpy().astype(float))).max())


def test_boxes_of_images_stored_in_full_stay_as_they_are() -> None:
    boxes, size = _boxes()
    assert torch.equal(stored_box(boxes, size, size.copy()), boxes.double())


def test_the_box_that_is_carried_out_is_the_box_that_was_drawn() -> None:
    boxes, size = _boxes()
    for side in SIDES:
        stored = _smaller(size, side)
        assert _moved(boxes, stored_box(boxes, size, stored), size, stored) < 0.01
    assert _moved(boxes, whole_box(stored_box(boxes, size, stored), stored), size, stored) > 3.5


def test_boxes_lie_in_the_copy_to_the_bit() -> None:
    boxes, size = _boxes()
    for side in SIDES:
        stored = _smaller(size, side)
        for carried_out in (stored_box(boxes, size, stored), whole_box(stored_box(boxes, size, stored), stored)):
            x, y, width, height = carried_out.T
            assert min(x.min(), y.min()) >= 0
            assert min(width.min(), height.min()) > 0
            assert (x + width <= torch.from_numpy(stored[:, 0])).all()
            assert (y + height <= torch.from_numpy(stored[:, 1])).all()


def test_a_box_of_the_whole_original_is_the_whole_copy() -> None:
    size = np.array([[500, 375], [1000, 3]], dtype=np.int32)
    stored = np.array([[256, 192], [256, 1]], dtype=np.int32)
    whole = torch.cat([torch.zeros(2, 2, dtype=torch.long), torch.from_numpy(size).long()], dim=1)
    assert stored_box(whole, size, stored).tolist() == [[0, 0, *sides] for sides in stored.tolist()]


def test_boxes_of_whole_pixels_are_the_nearest_ones_and_hold_a_pixel() -> None:
    boxes, size = _boxes()
    for side in SIDES:
        stored = _smaller(size, side)
        exact = stored_box(boxes, size, stored)
        whole = whole_box(exact, stored)
        assert whole.dtype == torch.int64
        assert (whole[:, 2:] >= 1).all()
        large = (whole[:, 2:] > 1).all(dim=1)  # a box of one pixel may have been widened to it
        moved = np.abs(_edges(whole.double().numpy()) - _edges(exact.numpy()))[large.numpy()]
        assert moved.max(initial=0) <= 0.5


def test_x_of_a_copy_shows_exactly_what_x_of_the_original_shows() -> None:
    _, size = _boxes(300)
    stored, policy = _smaller(size, 500), POLICIES["simclr_imagenet"].x
    shown = []
    for specs, sides in ((center_crop_specs(size, s, policy), s) for s in (size, stored)):
        assert (specs["x"] == 0).all()
        assert (specs["width"] == sides[:, 0]).all()
        assert (specs["height"] == sides[:, 1]).all()
        first = specs["left"] / specs["full_width"], specs["top"] / specs["full_height"]
        shown.append(np.stack([*first, policy.size / specs["full_width"], policy.size / specs["full_height"]]))
    np.testing.assert_array_equal(*shown)
    assert not np.array_equal(center_crop_specs(stored, stored, policy)["left"], specs["left"])
