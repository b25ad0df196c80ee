"""A tree of shapes drawn in several processes."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from equimod.pipelines.shapes import CLASSES, draw_dataset, draw_sample


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tree_holds_the_drawn_samples_and_their_factors(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "one", samples=300, seed=5, workers=1)
    draw_dataset(tmp_path / "two", samples=300, seed=5, workers=2)
    draw_dataset(tmp_path / "test", samples=20, seed=5, split="test")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    tree = ImageFolder(str(tmp_path / "one"))
    assert tree.classes == list(CLASSES)
    assert Counter(tree.targets) == dict.fromkeys(range(10), 30)
    with (tmp_path / "one" / "factors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {str(Path(path).relative_to(tmp_path / "one")) for path, _ in tree.samples}
    for index in (0, 123, 299):
        image, factors = draw_sample(seed=5, index=index)
        assert float(rows[index]["hue"]) == pytest.approx(factors.hue, abs=1e-4)
        assert rows[index]["texture"] == factors.texture
        with Image.open(tmp_path / "one" / rows[index]["file"]) as stored:
            assert np.abs(np.asarray(stored, dtype=float) - image).mean() < 8
    assert not set(files(tmp_path / "test").values()) & set(files(tmp_path / "one").values())
