"""The tables of the paper as sweeps: what they run, how they go on after an interruption, what they print."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from scipy import stats

from equimod.tools.sweep import TABLES, main
from equimod.train.config import ConfigError, parse
from equimod.train.evaluation import sweep_pictures, sweep_tables
from equimod.train.evaluation.summary import summary

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "dataset: shapes\nequimod: true\nepochs: 7\nbatch_size: 100\nseed: 3\nencoder: {arch: resnet18, width: 16}\n"
    )
    scores = {"linear_top1": 71.5, "equivariance_absolute": 1.5, "equivariance_relative": 0.5}
    (folder / "eval.json").write_text(
        json.dumps({**scores, "weights": "", "evaluators": {"linear": {"train_images": 5000, "val": ""}}})
    )
    events = [
        {"event": "step", "step": 10, "loss": 2.0, "lr": 0.5, "images_per_s": 500.0, "data_wait": 0.07},
        {"event": "checkpoint", "step": 15, "name": "step-00000015"},
        {"event": "step", "step": 30, "loss": 1.0, "lr": 0.5, "images_per_s": 400.0, "data_wait": 0.14},
    ]
    cut = '{"event": "st'  # by a kill
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + cut)
    return folder


def test_a_summary_holds_settings_scores_and_duration_of_a_run(run_folder: Path) -> None:
    run = summary(run_folder)
    config = run.pop("config")
    assert run == {
        "method": "simclr",
        "equimod": True,
        "arch": "resnet18",
        "width": 16,
        "epochs": 7,
        "batch_size": 100,
        "images": 5000,
        "seed": 3,
        "linear_top1": 71.5,
        "linear_cached_top1": None,
        "knn_top1": None,
        "absolute": 1.5,
        "relative": 0.5,
        "eval": {"linear_top1": 71.5, "equivariance_absolute": 1.5, "equivariance_relative": 0.5},
        "seconds": 1000 / 500 + 2000 / 400,
        "data_wait": 0.12,  # (2 * 0.07 + 5 * 0.14) / 7
    }
    assert (config["epochs"], config["encoder"]["width"]) == (7, 16)
    assert not {"data", "val", "output"} & config.keys()


def test_a_run_that_was_not_evaluated_has_no_summary(run_folder: Path) -> None:
    (run_folder / "eval.json").unlink()
    with pytest.raises(ConfigError, match=r"no eval\.json; run equimod evaluate"):
        summary(run_folder)


@pytest.mark.parametrize("size", ["paper", pytest.param("cpu", marks=pytest.mark.ci)])
@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_a_training_of_its_own_that_the_trainer_takes(
    table: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([table, "--size", size, "--data", "train", "--val", "val", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = set()
    for line in lines:
        training, _, evaluation = line.partition(" && ")
        config = parse(training.replace("''", "").split()[3:])
        config.require_complete()
        settings.add(config.to_yaml().replace(f"output: {config.output}", ""))
        assert ("--equivariance" in evaluation) == config.equimod
        assert ("--linear-cached" in evaluation) == (size == "cpu")
        assert config.dataset == ("shapes" if table == "demo" else "cifar10")
        assert config.dataset == "shapes" or (config.epochs in (8, 12)) == (size == "cpu")
    assert len(lines) == len(settings) == len(TABLES[table].rows)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-cpu-*.json")), ids=lambda path: path.stem)
def test_a_stored_table_has_the_settings_that_its_command_has_today(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that it recorded, but for what changes no number."""
    stored = json.loads(path.read_bytes())
    table = stored["benchmark"].partition("-cpu")[0]
    assert main([table, "--size", "cpu", "--data", "train", "--val", "val", "--list"]) == 0
    trainings = [line.partition(" && ")[0] for line in capsys.readouterr().out.splitlines()]
    by_title = dict(zip([row.title for row in TABLES[table].rows], trainings, strict=True))
    for row in stored["rows"]:
        config = parse(by_title[row["title"]].replace("''", "").split()[3:])
        today = yaml.safe_load(replace(config, precision=config.precision.replace("auto", "fp32")).to_yaml())
        recorded = row["runs"][0]["config"]
        assert _differences({**recorded, "backend": today["backend"], "resume": today["resume"]}, today) == []


def _differences(recorded: dict[str, Any], today: dict[str, Any]) -> list[str]:
    """The settings of both that differ."""
    found = []
    for key in recorded.keys() & today.keys():
        before, now = recorded[key], today[key]
        if isinstance(before, dict) and isinstance(now, dict):
            found += [f"{key}.{name}" for name in _differences(before, now)]
        elif before != now:
            found.append(f"{key}: {before} then, {now} now")
    return found


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_differences_are_paired_by_seed_with_the_interval_of_a_t_test(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    mine, others = ({seed: float(rng.normal(50, 3)) for seed in range(seeds)} for _ in range(2))
    order = sorted(mine)
    theirs = stats.ttest_rel([mine[s] for s in order], [others[s] for s in order]).confidence_interval(0.95)
    mean, low, high = sweep_tables.paired(mine, {**dict(reversed(others.items())), 99: 7.0})
    assert (low, high) == pytest.approx((theirs.low, theirs.high), rel=1e-3)
    assert mean == pytest.approx(np.mean([mine[s] - others[s] for s in order]))


def test_a_difference_whose_interval_holds_zero_is_called_not_significant() -> None:
    def row(title: str, method: str, equimod: bool, scores: list[float]) -> dict[str, Any]:
        of_all = {"method": method, "equimod": equimod, "seconds": 60, "linear_top1": None, "linear_cached_top1": None}
        of_all |= {"absolute": None, "relative": None, "arch": "resnet18", "width": 8, "epochs": 1, "images": 9}
        runs = [{**of_all, "seed": seed, "knn_top1": score} for seed, score in enumerate(scores)]
        return {"title": title, "paper": None, "runs": runs}

    rows = [
        row("A", "simclr", False, [10, 12, 14]),
        row("A + EquiMod", "simclr", True, [11, 13.1, 15]),
        {**row("A otherwise", "simclr", True, [11, 11, 15]), "options": ["--essl"]},
        row("A for longer", "simclr", False, [11, 13, 16]),
        row("B", "byol", False, [10, 20]),
        row("B + EquiMod", "byol", True, [30]),
    ]
    _, differences = sweep_tables.rows({"rows": rows})
    assert differences.columns == ["difference (95 % interval)", "kNN top-1", "seeds"]
    found = {title: (score, seeds) for title, score, seeds in differences.rows}
    assert found["A + EquiMod, less A"] == ("+1.03 (+0.89 to +1.18)", "3")
    assert found["A otherwise, less A"][0].startswith("+0.33 (")
    assert found["A otherwise, less A"][0].endswith("), not significant")
    assert "B + EquiMod, less B" not in found  # one seed
    assert [*found] == [
        *("A + EquiMod, less A", "A + EquiMod, less A for longer", "A otherwise, less A", "A for longer, less A")
    ]
    assert len(sweep_tables.rows({"rows": rows[3:4]})) == 1


@pytest.mark.parametrize("name", ["table2a", "table2b", "table2c", "table3a", "table3b", "table3c"])
def test_the_papers_default_is_one_row_of_each_ablation_and_is_what_the_recipe_has(name: str) -> None:
    rows = TABLES[name].rows
    (default,) = [row for row in rows if "(default)" in row.title]
    (option,) = {row.options[0] for row in rows if row is not default}
    assert (default.paper, default.options) == (92.79, ())
    values = default.title.removesuffix(" (default)").replace("none", "").split()
    recipe = ["--config", "simclr_equimod_cifar10"]
    assert parse([*recipe, option, *values]) == parse(recipe)


def test_rows_that_are_trained_the_same_share_a_folder_and_no_others_do() -> None:
    trained: dict[str, set[tuple[object, ...]]] = {}
    for table in TABLES.values():
        for row in table.rows:
            how = (row.method, row.equimod, row.longer, row.options)
            trained.setdefault(f"{table.dataset} {row.name}", set()).add(how)
    assert all(len(of_name) == 1 for of_name in trained.values())
    names = {row.name for table in ("table1", "table3a", "controls") for row in TABLES[table].rows}
    assert {"simclr", "simclr-equimod", "byol-equimod", "simclr-equimod-weight-0.1", "simclr-longer"} <= names


def test_a_table_of_what_representations_are_good_for_has_what_was_measured() -> None:
    def row(title: str, equimod: bool, scores: list[float]) -> dict[str, Any]:
        runs = [
            {"method": "simclr", "equimod": equimod, "seed": seed, "eval": {"rankme": score, "transfer_top1": 50.0}}
            for seed, score in enumerate(scores)
        ]
        return {"title": title, "paper": None, "runs": runs}

    scores, differences = sweep_tables.evaluation_rows({"rows": [row("A", False, [3, 5]), row("B", True, [4, 6.02])]})
    assert scores.columns == ["", "RankMe", "logistic regression top-1, %", "seeds"]
    assert scores.rows[0] == ["A", "4.0 ± 1.4", "50.00 ± 0.00", "2"]
    assert differences.rows == [["B, less A", "+1.0 (+0.9 to +1.1)", "+0.00 (+0.00 to +0.00), not significant", "2"]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from here on."""
    kept: list[Figure] = []
    monkeypatch.setattr(sweep_pictures, "save", lambda figure, path: kept.append(figure))
    return kept


def _evaluated(equimod: bool, **scores: float) -> dict[str, Any]:
    return {"equimod": equimod, "eval": scores}


def test_a_picture_of_scores_has_a_dot_a_seed_and_a_line_at_their_mean(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [
        {"title": "SimCLR", "runs": [_evaluated(False, knn_top1=50.0, transfer_top1=1.0)]},
        {"title": "not run", "runs": []},
        {"title": "SimCLR + EquiMod", "runs": [_evaluated(True, knn_top1=score) for score in (52.0, 55.0)]},
    ]
    sweep_pictures.draw("table1", {"title": "Table", "rows": rows}, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert axes.get_title() == "kNN top-1, %"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SimCLR", "SimCLR + EquiMod"]
    lines = [(line.get_marker(), line.get_color(), *zip(*line.get_data(), strict=True)) for line in axes.lines]
    assert lines == [
        ("o", "tab:gray", (50.0, 0)),
        ("|", "tab:gray", (50.0, 0)),
        ("o", "tab:blue", (52.0, 1), (55.0, 1)),
        ("|", "tab:blue", (53.5, 1)),
    ]
    assert axes.yaxis_inverted()


def test_a_picture_of_an_evaluation_has_a_panel_a_score(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [*sweep_tables.EVALUATIONS][:7]
    rows = [{"title": "SimCLR", "runs": [_evaluated(False, knn_top1=50.0, **dict.fromkeys(names, 1.0))]}]
    sweep_pictures.draw("evaluation", {"title": "Table", "rows": rows}, tmp_path / "a.png")
    shown = [axes for axes in drawn[0].axes if axes.axison]
    assert len(drawn[0].axes) == 10
    assert [axes.get_title().replace("\n", " ") for axes in shown] == [
        title for name, (title, _) in sweep_tables.EVALUATIONS.items() if name in names
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_picture_of_operators_has_their_mean_and_deviation_of_rows_with_equimod(
    seeds: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    rng = np.random.default_rng(seeds)
    crop = rng.normal(size=seeds)
    runs = [
        _evaluated(
            True,
            **{
                f"equivariance_{form}_crop{end}": value
                for form in ("absolute", "relative")
                for end, value in (("", c), ("_ci95", 0.25))
            },
        )
        for c in crop
    ]
    rows = [{"title": "BYOL", "runs": [_evaluated(False)]}, {"title": "BYOL + EquiMod", "runs": runs}]
    sweep_pictures.draw("figures", {"title": "Table", "rows": rows}, tmp_path / "a.png")
    for axes in drawn[0].axes:
        first, *others = axes.patches
        assert first.get_height() == pytest.approx(crop.mean())
        assert all(np.isnan(bar.get_height()) for bar in others)
        (intervals,) = next(c for c in axes.containers if isinstance(c, ErrorbarContainer)).lines[2]
        spread = 0.25 if seeds == 1 else crop.std(ddof=1)
        assert intervals.get_segments()[0][:, 1] == pytest.approx([crop.mean() - spread, crop.mean() + spread])
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["BYOL + EquiMod"]
    assert ("seeds" in legend.get_title().get_text()) == (seeds > 1)


def test_the_picture_of_the_demo_is_its_comparison(tmp_path: Path) -> None:
    result = json.loads((RESULTS / "demo-cpu-2026-11-27.json").read_bytes())
    sweep_pictures.draw("demo", result, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000
