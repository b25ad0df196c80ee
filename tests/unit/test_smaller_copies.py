"""Views of records with smaller copies show what views of the originals show, to a fraction of a pixel."""

from __future__ import annotations

from pathlib import Path

import pytest
from smaller_copies import distance, full_and_smaller, images

from equimod.pipelines import build
from equimod.pipelines.backends import native_backend
from equimod.pipelines.geometry import whole_box
from equimod.pipelines.resize import CropResizer


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return full_and_smaller(tmp_path_factory.mktemp("waves"))


def test_views_of_copies_are_those_of_the_originals(
    records: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, small = records
    originals = images(full, "native")
    found = distance(originals, images(small, "native"))
    assert max(found) < 1
    exact = build.stored_box
    monkeypatch.setattr(build, "stored_box", lambda box, size, stored: whole_box(exact(box, size, stored), stored))
    x, *views = distance(originals, images(small, "native"))
    assert x == found[0]
    assert min(views) > 3 * max(found)


def test_views_of_copies_are_the_same_without_the_kernel(
    records: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = images(records[1], "native")
    monkeypatch.setattr(native_backend, "CropResizer", lambda specs, targets: CropResizer(specs, targets, None))
    assert distance(found, images(records[1], "native")) == [0, 0, 0]
