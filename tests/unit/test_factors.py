"""The read-out of factors, against numpy's least squares and where the answer is known, and the table they stand in."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from equimod.pipelines.records import Records, open_records
from equimod.pipelines.shapes import CLASSES, COLUMNS, ONE_DIRECTION, draw_dataset
from equimod.train.config import ConfigError
from equimod.train.evaluation import factors
from equimod.train.evaluation.factor_table import read_factors

Array = NDArray[np.float64]


def _ridge(h: Array, y: Array, test: Array, ridge: float) -> Array:
    """Predictions on `test` by least squares on standardised columns, with the penalty as more rows."""
    penalty = np.sqrt(ridge * len(h)) * np.eye(h.shape[1])
    a = np.concatenate([(h - h.mean(0)) / h.std(0), penalty])
    b = np.concatenate([(y - y.mean(0)) / y.std(0), np.zeros((h.shape[1], y.shape[1]))])
    solved: Array = (test - h.mean(0)) / h.std(0) @ np.linalg.lstsq(a, b, rcond=None)[0] * y.std(0) + y.mean(0)
    return solved


def _best(h: Array, y: Array) -> float:
    """The penalty with the least error on every fifth row, the weights fitted to the others."""
    held = np.arange(len(h)) % 5 == 0
    errors = {r: ((y[held] - _ridge(h[~held], y[~held], h[held], r)) ** 2).sum() for r in factors.RIDGES}
    return min(errors, key=lambda ridge: errors[ridge])


def _reference(h: Array, y: Array, h_test: Array, y_test: Array) -> float:
    """R2 over all columns of `y`, with the best penalty."""
    error = ((y_test - _ridge(h, y, h_test, _best(h, y))) ** 2).sum()
    return float(1 - error / ((y_test - y_test.mean(0)) ** 2).sum())


def _measure(h: Array, train: dict[str, Array], h_test: Array, test: dict[str, Array]) -> dict[str, float]:
    def tensors(columns: dict[str, Array]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    return dict(factors.measure(torch.from_numpy(h), tensors(train), torch.from_numpy(h_test), tensors(test)))


def test_r2_equals_least_squares_with_the_penalty_that_is_best_on_held_out_images() -> None:
    rng = np.random.default_rng(1)
    chosen = set()
    for noise in (0.1, 30.0, 300.0):
        h, test = (rng.normal(3, 2, (rows, 12)) * np.geomspace(0.1, 10, 12) for rows in (60, 30))
        slope = rng.normal(size=12)
        y, y_test = (rows @ slope + rng.normal(0, noise, len(rows)) for rows in (h, test))
        found = _measure(h, {"size": y}, test, {"size": y_test})
        assert found == pytest.approx({"factors_r2_size": _reference(h, y[:, None], test, y_test[:, None])}, rel=1e-8)
        chosen.add(_best(h, y[:, None]))
    assert len(chosen) > 1


def test_hue_and_angle_go_round() -> None:
    """What holds their sine and cosine tells them exactly, also across the place where they start again."""
    rng = np.random.default_rng(0)
    hue = rng.random(200)
    h = np.stack([np.sin(2 * np.pi * hue), np.cos(2 * np.pi * hue)], axis=1) @ rng.normal(size=(2, 5))
    h += 0.01 * rng.normal(size=h.shape)
    found = _measure(h, {"hue": hue, "angle": 360 * hue, "x": hue}, h, {"hue": hue, "angle": 360 * hue, "x": hue})
    assert found["factors_r2_hue"] > 0.99
    assert found["factors_r2_angle"] == pytest.approx(found["factors_r2_hue"])
    assert found["factors_r2_x"] < 0.8
    turned = _measure(h, {"hue": hue + 0.3}, h, {"hue": (hue + 0.3) % 1})
    assert turned["factors_r2_hue"] == pytest.approx(found["factors_r2_hue"])


def test_r2_of_a_circular_factor_is_over_sine_and_cosine_together() -> None:
    rng = np.random.default_rng(2)
    h, angle = rng.normal(size=(80, 4)), rng.normal(0, 20, 80)  # in degrees: its cosine hardly varies
    targets = np.stack([np.sin(np.radians(angle)), np.cos(np.radians(angle))], axis=1)
    h[:, 0] += targets[:, 0] * 5
    expected = _reference(h[:50], targets[:50], h[50:], targets[50:])
    found = _measure(h[:50], {"angle": angle[:50]}, h[50:], {"angle": angle[50:]})
    assert found["factors_r2_angle"] == pytest.approx(expected, rel=1e-8)


def test_images_without_a_factor_count_for_the_others_only() -> None:
    rng = np.random.default_rng(0)
    h, known = rng.normal(size=(60, 3)), np.arange(60) % 3 > 0
    y = h @ [1.0, 2.0, 3.0] + rng.normal(size=60)
    some = np.where(known, y, np.nan)
    found = _measure(h, {"x": y, "some": some}, h, {"x": y, "some": some})
    alone = _measure(h[known], {"some": y[known]}, h[known], {"some": y[known]})
    assert found["factors_r2_some"] == pytest.approx(alone["factors_r2_some"], rel=1e-12)
    assert found["factors_r2_x"] != found["factors_r2_some"]


def test_what_never_varies_or_is_not_in_both_is_left_out() -> None:
    rng = np.random.default_rng(0)
    h, same, nothing = rng.normal(size=(20, 3)), np.full(20, 0.1), np.full(20, np.nan)
    train = {"x": h[:, 0], "same": same, "angle": same, "nothing": nothing, "here": h[:, 1]}
    assert list(_measure(h, train, h, {**train, "there": h[:, 1]} | {"here": same})) == ["factors_r2_x"]
    assert list(_measure(h, {"here": h[:, 1]}, h, {"there": h[:, 1]})) == []


def test_a_factor_that_is_large_beside_its_deviation_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(size=(50, 3))
    seconds = 1.7e9 + h @ [1.0, 2.0, 3.0]
    found = _measure(h, {"time": seconds}, h, {"time": seconds})
    assert found["factors_r2_time"] == pytest.approx(1, abs=1e-4)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The embedded data set as it is drawn: 40 images."""
    draw_dataset(tmp_path / "tree", samples=40, seed=0)
    return tmp_path / "tree"


def _small(image_tree: Path, tmp_path: Path, text: str) -> tuple[Path, Records]:
    """The small tree of 24 images under another path, with a table beside it."""
    folder = tmp_path / "images"
    folder.symlink_to(image_tree)
    (tmp_path / "images-factors.csv").write_text(text, encoding="utf-8")
    return folder, open_records(folder)


def _rows(records: Records, *columns: str) -> str:
    """Lines of a table whose second cell is the position of the image, and whose third is as given."""
    return "".join(f"{records.source(n)},{n},{','.join(columns)}\n" for n in range(len(records)))


def test_drawn_factors_are_read_in_the_order_of_the_records(tree: Path) -> None:
    records = open_records(tree)
    found = read_factors(tree, records)
    assert list(found) == ["x", "y", "size", "angle", "hue", "lightness", "background_hue", "background_lightness"]
    lines = dict(line.split(",", 1) for line in (tree / "factors.csv").read_text().splitlines()[1:])
    for position in (0, 17, 39):
        cells = lines[records.source(position)].split(",")
        assert found["size"][position].item() == float(cells[COLUMNS.index("size") - 1])
        assert found["hue"][position].item() == float(cells[COLUMNS.index("hue") - 1])


def test_an_angle_is_known_of_outlines_with_one_direction(tree: Path) -> None:
    records = open_records(tree)
    known = ~read_factors(tree, records)["angle"].isnan()
    assert {records.classes[label] for label in records.label[known.numpy()]} == set(ONE_DIRECTION)
    assert known.sum() == 40 * len(ONE_DIRECTION) / len(CLASSES)


def test_a_table_beside_the_folder_is_found_and_one_inside_comes_first(tree: Path) -> None:
    beside = (tree / "factors.csv").rename(tree.with_name("tree-factors.csv"))
    records = open_records(tree)
    size = read_factors(tree, records)["size"]
    lines = beside.read_text().splitlines(keepends=True)
    (tree / "factors.csv").write_text("file,size\n" + "".join(f"{line.split(',')[0]},7\n" for line in lines[1:]))
    assert size.std() > 0
    assert read_factors(tree, records)["size"].tolist() == [7.0] * 40


def test_columns_of_numbers_are_factors_and_empty_cells_are_unknown(image_tree: Path, tmp_path: Path) -> None:
    rows = _rows(open_records(image_tree), "red,,1").replace(",3,red,,1", ",,,2.5,1")
    folder, records = _small(image_tree, tmp_path, "file,place,paint,weight,label\n" + rows + "elsewhere.jpg,8,9,9,9\n")
    found = read_factors(folder, records)
    assert list(found) == ["place", "weight"]
    place = [n if n != 3 else math.nan for n in range(24)]
    np.testing.assert_array_equal(found["place"], place)
    assert found["weight"][3] == 2.5
    assert found["weight"].isnan().sum() == 23


@pytest.mark.parametrize(
    ("header", "column", "message"),
    [
        ("name,x,y", "1", r"images-factors\.csv has no column 'file' in its first line"),
        ("file,x", "1", r"images-factors\.csv, line 2: 3 cells, not 2"),
        ("file,label,y", "red", r"images-factors\.csv has no column of numbers beside file and label"),
        ("file,label,y", "inf", r"images-factors\.csv has no column of numbers"),
        ("", "1", r"has no column 'file'"),
        ("file,x," + 200_000 * "y", "1", r"images-factors\.csv is not CSV in UTF-8 \(field larger"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(
    image_tree: Path, tmp_path: Path, header: str, column: str, message: str
) -> None:
    folder, records = _small(image_tree, tmp_path, f"{header}\n" + _rows(open_records(image_tree), column))
    with pytest.raises(ConfigError, match=message):
        read_factors(folder, records)


def test_images_without_a_row_are_counted_and_rows_must_differ(image_tree: Path, tmp_path: Path) -> None:
    rows = _rows(open_records(image_tree), "1").splitlines(keepends=True)
    folder, records = _small(image_tree, tmp_path, "file,x,y\n" + "".join(rows[2:]))
    with pytest.raises(ConfigError, match=r"has no row for class_0/000\.jpg \(2 images have none\)"):
        read_factors(folder, records)
    (tmp_path / "images-factors.csv").write_text("file,x,y\n" + "".join([*rows, rows[4]]))
    with pytest.raises(ConfigError, match=r"line 26: class_0/004\.jpg has a row already"):
        read_factors(folder, records)
    (tmp_path / "images-factors.csv").write_bytes(b"file,x\n\xff,1\n")
    with pytest.raises(ConfigError, match=r"is not CSV in UTF-8"):
        read_factors(folder, records)


def test_images_without_a_table_say_where_it_belongs(image_tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither \S+/factors\.csv nor \S+-factors\.csv; put one there") as error:
        read_factors(image_tree, open_records(image_tree))
    assert len(str(error.value).splitlines()) == 1
