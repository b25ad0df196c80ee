"""The README's tables say what the results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equimod.benchmarks.collect import collect
from equimod.benchmarks.collect import main as collect_main
from equimod.benchmarks.readme import ReadmeError, cifar10_table, main, render

CHECKOUT = Path(__file__).parent.parent
README = "# Title\n<!-- table: loader -->\nold\n<!-- end -->\ntext\n<!-- table: cifar10 -->\n<!-- end -->\nend\n"
ORIGIN: dict[str, Any] = {
    "date": "2026-11-22T10:00:00+00:00",
    "commit": {"sha": "0123456789abcdef", "dirty": False},
    "machine": {"cpu": "Some CPU", "cores": 2},
    "versions": {"python": "3.11", "equimod": "0.1.0", "torch": "2.14"},
}


def _contender(speed: float) -> dict[str, Any]:
    return {
        "images_per_second": {"median": speed, "low": speed - 1, "high": speed + 1},
        "cpu_ms_per_image": {"median": 2000 / speed},
        "peak_bytes": 300 * 2**20,
        "start_seconds": 1.25,
        "first_batch_seconds": 0.5,
    }


LOADER = {
    **ORIGIN,
    "benchmark": "loader",
    "settings": {"images": 2048, "policy": "simclr_imagenet", "batch_size": 64, "workers": 2},
    "contenders": {"decode": _contender(1600), "native": _contender(1000), "torchvision": _contender(320)},
    "ratios": {
        "native/decode": {"median": 0.625},
        "torchvision/decode": {"median": 0.2},
        "native/torchvision": {"median": 3.125},
    },
    "rounds": [{}, {}, {}],
}


def _run(equimod: bool, seed: int, linear: float) -> dict[str, Any]:
    return {
        "method": "simclr",
        "equimod": equimod,
        "arch": "resnet18",
        "width": 16,
        "epochs": 20,
        "images": 50_000,
        "seed": seed,
        "linear_top1": linear,
        "linear_cached_top1": None,
        "knn_top1": 60.0,
        "absolute": 1.5 if equimod else None,
        "relative": 0.75 if equimod else None,
        "seconds": 600.0,
        "data_wait": 0.021,
    }


CIFAR10 = {**ORIGIN, "benchmark": "cifar10", "runs": [_run(True, 0, 70), _run(False, 0, 68), _run(True, 1, 72)]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "loader.json").write_text(json.dumps(LOADER))
    (folder / "cifar10-cpu.json").write_text(json.dumps(CIFAR10))
    return folder


def test_tables_of_the_readme_are_those_of_the_results() -> None:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert render(text, CHECKOUT / "benchmarks" / "results") == text


def test_render_replaces_the_tables_and_nothing_else(results: Path) -> None:
    rendered = render(README, results)
    assert "old" not in rendered
    assert rendered.startswith("# Title\n<!-- table: loader -->\n| loader |")
    assert "<!-- end -->\ntext\n<!-- table: cifar10 -->\n| method" in rendered
    assert rendered.endswith("<!-- end -->\nend\n")
    assert render(rendered, results) == rendered


def test_loader_table_gives_speed_cost_memory_and_ratios(results: Path) -> None:
    rendered = render(README, results)
    assert "| equimod, native backend | 1,000 (999 to 1,001) | 0.62 | 2.00 | 300 | 0.50 | 1.2 |" in rendered
    assert "0.62 times what decoding alone does, 3.12 times torchvision." in rendered
    assert "3 interleaved rounds of 2,048 images" in rendered


def test_cifar10_table_has_a_row_a_configuration_with_its_mean() -> None:
    rows = [line.split(" | ") for line in cifar10_table(CIFAR10).splitlines() if line.startswith("| simclr")]
    plain, equimod = ([cell.strip("| ") for cell in row] for row in rows)
    assert plain == ["simclr, resnet18 width 16", "20", "50,000", "68.00", "60.00", "–", "–", "10", "2.1", "1"]
    assert equimod[0] == "simclr + EquiMod, resnet18 width 16"
    assert equimod[3:] == ["71.00 ± 1.41", "60.00 ± 0.00", "1.500 ± 0.000", "0.750 ± 0.000", "10 ± 0", "2.1 ± 0.0", "2"]


def test_a_result_without_data_wait_fills_the_table_without_it() -> None:
    runs = [{key: value for key, value in run.items() if key != "data_wait"} for run in CIFAR10["runs"]]
    table = cifar10_table({**CIFAR10, "runs": runs})
    assert "| 10 | 1 |" in table
    assert "ata wait" not in table
    assert "| 10 | – | 1 |" in cifar10_table({**CIFAR10, "runs": [CIFAR10["runs"][0], runs[1]]})


def test_the_newest_result_counts_whatever_the_name_of_its_file(results: Path) -> None:
    (results / "a.json").write_text(json.dumps({**LOADER, "date": "2026-12-01T00:00:00+00:00"}))
    (results / "z.json").write_text(json.dumps({**LOADER, "date": "2026-11-01T00:00:00+00:00"}))
    assert "2026-12-01" in render(README, results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: step -->\n<!-- end -->\n", "table 'step' is not known"),
        ("<!-- table: loader -->\n", "no '<!-- end -->'"),
    ],
)
def test_markers_that_cannot_be_filled_are_refused(results: Path, text: str, message: str) -> None:
    with pytest.raises(ReadmeError, match=message):
        render(text, results)


def test_a_table_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadmeError, match="holds no result of 'loader'"):
        render(README, tmp_path)


def test_check_changes_nothing_and_fails_on_a_stale_readme(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    arguments = ["--readme", str(readme), "--results", str(results)]
    assert main(["--check", *arguments]) == 1
    assert capsys.readouterr().err == "error: README.md is stale; run python benchmarks/readme.py\n"
    assert readme.read_text() == README
    assert main(arguments) == 0
    assert main(["--check", *arguments]) == 0


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "equimod: true\nepochs: 7\nbatch_size: 100\nseed: 3\nencoder: {arch: resnet18, width: 16}\n"
    )
    scores = {"linear_top1": 71.5, "equivariance_absolute": 1.5, "equivariance_relative": 0.5}
    (folder / "eval.json").write_text(json.dumps({**scores, "evaluators": {"linear": {"train_images": 5000}}}))
    events = [
        {"event": "step", "step": 10, "images_per_s": 500.0, "data_wait": 0.07},
        {"event": "checkpoint", "step": 15},
        {"event": "step", "step": 30, "images_per_s": 400.0, "data_wait": 0.14},
    ]
    cut = '{"event": "st'  # by a kill
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + cut)
    return folder


def test_collect_reads_settings_scores_and_duration_of_a_run(run_folder: Path) -> None:
    run = collect(run_folder)
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
        "seconds": 1000 / 500 + 2000 / 400,
        "data_wait": 0.12,  # (2 * 0.07 + 5 * 0.14) / 7
    }


def test_collected_runs_fill_the_table(run_folder: Path, tmp_path: Path) -> None:
    assert collect_main([str(tmp_path / "cifar10-cpu.json"), str(run_folder), str(run_folder)]) == 0
    assert "| simclr + EquiMod, resnet18 width 16 | 7 | 5,000 | 71.50 ± 0.00 |" in render(
        "<!-- table: cifar10 -->\n<!-- end -->\n", tmp_path
    )


def test_a_run_that_was_not_evaluated_gives_one_clear_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "eval.json").unlink()
    assert collect_main([str(tmp_path / "out.json"), str(run_folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "eval.json" in error
    assert "evaluate.py" in error
    assert not (tmp_path / "out.json").exists()
