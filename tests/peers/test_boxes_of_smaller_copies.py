"""How far from the box that was drawn DALI and FFCV carry it out in smaller copies. The native backend: tests/unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs
from numpy.typing import NDArray
from smaller_copies import POLICY, distance, full_and_smaller, images
from torch import Tensor

from equimod.pipelines.geometry import stored_box, whole_box
from equimod.pipelines.params import draw

LEVELS = {"dali": 0.5, "ffcv": 6.0}  # mean over x or a view, of 255; ffcv resizes by area, which blurs small boxes


def _drawn() -> tuple[Tensor, NDArray[np.int32], NDArray[np.int32]]:
    """Boxes (N,4) in originals of 501 to 4,000 pixels a side, their sizes (N,2), and those of copies of 500 at most."""
    size = np.random.default_rng(0).integers(501, 4001, (5000, 2)).astype(np.int32)
    stored = (size * 500 / size.max(axis=1, keepdims=True)).round().astype(np.int32)
    return draw(POLICY.views[0], size, np.arange(len(size)), seed=0, epoch=0, view=0).crop, size, stored


def _moved(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances (N,4) of the edges of the boxes drawn from those carried out in the copy, in pixels of the original."""
    boxes, size, stored = _drawn()
    drawn = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).numpy()
    moved: NDArray[np.float64] = np.abs(np.concatenate([start, end], axis=1) * np.tile(size / stored, 2) - drawn)
    return moved


def test_dali_carries_out_the_box_that_was_drawn() -> None:
    needs("dali")
    from equimod.pipelines.backends.dali_backend import view_inputs

    boxes, size, stored = _drawn()
    inputs = view_inputs(0, stored_box(boxes, size, stored).numpy(), POLICY.views[0], stored)
    corner = inputs["slice_start_0"].astype(np.float64)
    moved = _moved(corner + inputs["box_start_0"][:, ::-1], corner + inputs["box_end_0"][:, ::-1])
    assert moved.max() < 0.001


def test_ffcv_moves_edges_by_1_4_pixels_of_the_original_and_by_4_at_most() -> None:
    boxes, size, stored = _drawn()
    whole = whole_box(stored_box(boxes, size, stored), stored).double().numpy()
    moved = _moved(whole[:, :2], whole[:, :2] + whole[:, 2:])
    assert 1.3 < moved.mean() < 1.45
    assert 3.9 < moved.max() < 4.01


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return full_and_smaller(tmp_path_factory.mktemp("waves"))


@pytest.mark.parametrize("backend", ["dali", "ffcv"])
def test_views_of_copies_are_those_of_the_originals(records: tuple[Path, Path], backend: str) -> None:
    needs(backend)
    full, small = records
    found = images(small, backend)
    assert max(distance(images(full, "native"), found)) < LEVELS[backend]
    assert max(distance(images(small, "native"), found)) < LEVELS[backend]
