"""Runs side by side: what is one column, what the table and the figure show, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from commands import call
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from equimod.tools.compare_runs import compared, main
from equimod.train.evaluation import comparison, figures

SCORES = {"linear_cached_top1": 50.0, "linear_cached_top5": 90.0, "knn_top1": 40.0, "factors_r2_hue": 0.25}


def _run(folder: Path, settings: str = "", val: str = "val", **scores: float) -> Path:
    """An evaluated run of two steps at 600 images/s, in ten minutes."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"batch_size: 180000\n{settings}")
    used = {"train_images": 80, "val": val}
    (folder / "eval.json").write_text(
        json.dumps({**SCORES, **scores, "weights": "", "evaluators": {"knn": used, "factors": used}})
    )
    told = {"event": "step", "loss": 1.0, "lr": 0.5, "images_per_s": 600.0, "data_wait": 0.0}
    steps = [{**told, "step": step} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of SimCLR and one of SimCLR + EquiMod."""
    return [
        _run(tmp_path / "a", "seed: 0\n"),
        _run(tmp_path / "b", "seed: 1\nequimod: true\n", factors_r2_hue=0.75, equivariance_absolute=0.125),
        _run(tmp_path / "c", "seed: 1\nsystem: {workers: 1}\n", linear_cached_top1=52.0, factors_r2_hue=0.35),
    ]


def test_runs_that_differ_in_their_seed_are_one_column(runs: list[Path]) -> None:
    (table,) = comparison.rows(compared(runs))
    assert table.columns == ["", "simclr", "simclr + EquiMod"]
    assert table.rows == [
        ["class, linear top-1 on cached features, %", "51.0 ± 1.4", "50.0"],
        ["class, kNN top-1, %", "40.0 ± 0.0", "40.0"],
        ["hue, R2", "0.300 ± 0.071", "0.750"],
        ["absolute equivariance", "–", "0.125"],
        ["minutes of training", "10.0 ± 0.0", "10.0"],
    ]


def test_settings_of_one_method_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [_run(tmp_path / name, f"equimod: true\nepochs: {n}\n") for name, n in (("few", 20), ("many", 30))]
    assert [row["title"] for row in compared(folders)["rows"]] == [str(tmp_path / "few"), str(tmp_path / "many")]


def test_the_command_prints_the_table_and_draws_the_figure(runs: list[Path], tmp_path: Path) -> None:
    answer = call(main, *runs, "--output", tmp_path / "figure.png")
    assert (answer.code, answer.err) == (0, "")
    assert "0.300 ± 0.071" in answer.out
    assert answer.out.splitlines()[-1] == f"figure: {tmp_path / 'figure.png'}"
    assert matplotlib.image.imread(tmp_path / "figure.png").std() > 0.05


def test_bars_are_means_and_dots_are_seeds(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    figures.draw_comparison(comparison.settings_of(compared(runs)), runs[0] / "figure.png", "title")
    accuracy, r2 = drawn[0].axes
    assert [text.get_text() for text in accuracy.get_xticklabels()] == ["linear top-1\non cached features", "kNN top-1"]
    assert [text.get_text() for text in r2.get_xticklabels()] == ["hue"]
    for axes, expected in ((accuracy, [[51, 40], [50, 40]]), (r2, [[0.3], [0.75]])):
        bars = [container for container in axes.containers if isinstance(container, BarContainer)]
        np.testing.assert_allclose([[bar.get_height() for bar in of] for of in bars], expected)
    assert [sorted(line.get_ydata()) for line in r2.lines if line.get_marker() == "."] == [[0.25, 0.35], [0.75]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["simclr", "simclr + EquiMod"]


@pytest.mark.parametrize("names", [["knn_top1"], ["factors_r2_hue"], []])
def test_a_figure_has_no_panel_without_scores(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    scores: list[dict[str, Any]] = [{"eval": dict.fromkeys(names, 1.0)}]
    figures.draw_comparison({"a": scores, "b": scores}, tmp_path / "figure.png", "title")
    assert len(drawn[0].axes) == len(names)


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    elsewhere = _run(tmp_path / "d", val="others")
    for folders, code, message in (
        (runs[:1], 2, "give the folders of two or more"),
        ([runs[0], elsewhere], 2, f"{elsewhere} was evaluated on {Path('others').resolve()} and {runs[0]} on"),
        ([runs[0], tmp_path / "none"], 2, f"{tmp_path}/none holds no run (no config.yaml); give the --output folder"),
    ):
        answer = call(main, *folders, "--output", tmp_path / "figure.png")
        assert answer.code == code
        (line,) = answer.err.splitlines()
        assert message in line
    (runs[1] / "eval.json").unlink()
    answer = call(main, *runs, "--output", tmp_path / "figure.png")
    assert answer.err == f"error: {runs[1]} has no eval.json; run equimod evaluate {runs[1]} first\n"
    assert not (tmp_path / "figure.png").exists()
