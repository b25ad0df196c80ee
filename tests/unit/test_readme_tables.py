"""The tables of README.md and docs/*.md say what the results say."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from equimod.benchmarks.compare_loaders import Views
from equimod.benchmarks.readme import NUMBERS, TABLES, ReadmeError, documents_of, main, render_tables
from equimod.train.evaluation import comparison, sweep_tables

CHECKOUT = Path(__file__).parents[2]
README = "# Title\n<!-- table: loader -->\nold\n<!-- end -->\ntext\n<!-- table: table1-cpu -->\n<!-- end -->\nend\n"
ORIGIN: dict[str, Any] = {
    "date": "2026-11-22T10:00:00+00:00",
    "commit": {"sha": "0123456789abcdef", "dirty": False},
    "machine": {"cpu": "Some CPU", "cores": 2},
    "versions": {"python": "3.11", "equimod": "0.1.0", "torch": "2.14"},
}


def test_every_extra_is_in_the_quick_start() -> None:
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (CHECKOUT / "docs" / "quickstart.md").read_text()
    assert [name for name in extras if f"'.[{name}]'" not in text] == []


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


VIEWS = {
    **LOADER,
    "benchmark": "views",
    "contenders": {"native": _contender(400), "torchvision": _contender(125)},
    "ratios": {"CPU-ms: native/torchvision": {"median": 0.3125, "low": 0.3, "high": 0.333}},
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


SWEEP = {
    **ORIGIN,
    "benchmark": "table1-cpu",
    "title": "Methods",
    "rows": [
        {"title": "SimCLR", "paper": 90.96, "runs": [_run(False, 0, 68)]},
        {"title": "SimCLR + EquiMod", "paper": None, "runs": [_run(True, 0, 70), _run(True, 1, 72)]},
        {"title": "not run yet", "paper": None, "runs": []},
    ],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "loader.json").write_text(json.dumps(LOADER))
    (folder / "table1-cpu.json").write_text(json.dumps(SWEEP))
    return folder


@pytest.mark.parametrize("document", documents_of(CHECKOUT), ids=lambda path: path.name)
def test_tables_of_a_document_are_those_of_the_results(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert render_tables(text, CHECKOUT / "benchmarks" / "results") == text


def test_every_table_stands_in_one_document() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in documents_of(CHECKOUT))
    assert sorted(re.findall("<!-- table: (.*) -->", text)) == sorted(["numbers", "growth", *TABLES])


def test_numbers_are_those_of_the_newest_results_that_hold_them(results: Path) -> None:
    (results / "views.json").write_text(json.dumps(VIEWS))
    gpu = {**ORIGIN, "benchmark": "gpu", "gpu": {"name": "NVIDIA B7"}}
    share = {"name": "share of the step alone", "value": {"median": 0.987}}
    (results / "gpu-a.json").write_text(json.dumps({**gpu, "sections": [{"name": "training", "findings": [share]}]}))
    newer = {**gpu, "date": "2026-12-01T00:00:00+00:00", "sections": [{"name": "training", "findings": []}]}
    (results / "gpu-b.json").write_text(json.dumps(newer))
    scores = {"SimCLR": 50, "SimCLR + EquiMod": 60, "BYOL": 40, "BYOL + EquiMod": 45}
    rows = [{"title": t, "runs": [{"linear_cached_top1": s + seed} for seed in (0, 1)]} for t, s in scores.items()]
    (results / "table1-cpu.json").write_text(json.dumps({**SWEEP, "rows": rows}))
    lines = render_tables("<!-- table: numbers -->\n<!-- end -->", results).splitlines()[3:-1]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(NUMBERS)
    assert [line.split(" | ")[1] for line in lines] == [
        "1,000 images/s on 2 cores, 3.1 times as many",
        "0.31 of it",
        "0.99 on one B7",
        "SimCLR 50.5 % to 60.5 %, BYOL 40.5 % to 45.5 %",
    ]
    assert lines[2].endswith("[`gpu-a`](benchmarks/results/gpu-a.json) |")


def test_render_replaces_the_tables_and_nothing_else(results: Path) -> None:
    rendered = render_tables(README, results)
    assert "old" not in rendered
    assert rendered.startswith("# Title\n<!-- table: loader -->\n| loader |")
    picture = "![Methods](../benchmarks/results/table1-cpu.png)\n\n"
    assert f"<!-- end -->\ntext\n<!-- table: table1-cpu -->\n{picture}|  | linear" in rendered
    assert rendered.endswith("<!-- end -->\nend\n")
    assert render_tables(rendered, results) == rendered


def test_a_newer_result_without_what_a_table_shows_is_passed_over(results: Path) -> None:
    gpu = {**ORIGIN, "benchmark": "gpu", "gpu": {"name": "NVIDIA B7", "driver": "1", "cuda": "2", "triton": "3"}}
    rate = {"name": "a step", "value": {"median": 12.5, "low": 12.5, "high": 12.5}, "unit": "ms"}
    (results / "gpu-a.json").write_text(json.dumps({**gpu, "sections": [{"name": "step", "findings": [rate]}]}))
    newer = {**gpu, "date": "2026-12-01T00:00:00+00:00", "sections": [{"name": "run", "findings": [rate]}]}
    (results / "gpu-b.json").write_text(json.dumps(newer))
    assert "| a step | 12.5 ms |" in render_tables("<!-- table: gpu -->\n<!-- end -->", results)
    (results / "gpu-a.json").unlink()
    with pytest.raises(ReadmeError, match=r"no result of 'gpu' in .* has what its table shows"):
        render_tables("<!-- table: gpu -->\n<!-- end -->", results)


def test_views_table_gives_speed_cost_and_share() -> None:
    text = Views.rows(VIEWS)[0].markdown() + Views.caption(VIEWS)
    assert "| equimod, native backend | 400 (399 to 401) | 5.00 |" in text
    assert "| torchvision and Pillow in a DataLoader | 125 (124 to 126) | 16.00 |" in text
    assert "take 0.31 (0.30 to 0.33) of the CPU time" in text


def test_loader_table_gives_speed_cost_memory_and_ratios(results: Path) -> None:
    rendered = render_tables(README, results)
    assert "| equimod, native backend | 1,000 (999 to 1,001) | 0.62 | 2.00 | 300 | 0.50 | 1.2 |" in rendered
    assert "0.62 times what decoding alone does, 3.12 times torchvision." in rendered
    assert "3 interleaved rounds of 2,048 images" in rendered


def test_sweep_table_has_a_row_with_its_mean_beside_the_papers_score() -> None:
    lines = sweep_tables.rows(SWEEP)[0].markdown().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| SimCLR")]
    plain, equimod = ([cell.strip("| ") for cell in row] for row in rows)
    assert plain == ["SimCLR", "68.00", "60.00", "–", "–", "10.0", "1", "90.96"]
    assert equimod[:2] == ["SimCLR + EquiMod", "71.00 ± 1.41"]
    assert equimod[2:] == ["60.00 ± 0.00", "1.500 ± 0.000", "0.750 ± 0.000", "10.0 ± 0.0", "2", "–"]
    assert "resnet18 width 16, 20 epochs of 50,000 images; " in sweep_tables.caption(SWEEP)


def test_figures_table_gives_the_operators_that_were_measured() -> None:
    known = {"equivariance_absolute_crop": 0.1, "equivariance_relative_crop": 1.5, "readout_r2_crop": 0.4}
    more = {"readout_r2_crop": 0.6, "equivariance_absolute_crop": 0.2, "equivariance_relative_crop": 2.5}
    rows = [
        {"title": "SimCLR", "runs": [{**_run(False, 0, 68), "eval": {"readout_r2_crop": 0.25}}]},
        {
            "title": "SimCLR + EquiMod",
            "runs": [
                {**_run(True, 0, 70), "eval": {**known, "retrieval_mrr": 0.75}},
                {**_run(True, 1, 70), "eval": {**more, "retrieval_mrr": 0.75}},
            ],
        },
    ]
    tables = sweep_tables.figure_rows({**SWEEP, "rows": rows})
    table = "".join(one.markdown() for one in tables).splitlines()
    assert "| SimCLR + EquiMod, absolute | 0.150 ± 0.071 | – | – | – | – | – |" in table
    assert "| SimCLR + EquiMod, relative | 2.00 ± 0.71 | – | – | – | – | – |" in table
    assert "| SimCLR | 0.250 | – | – | – | – | – |" in table
    assert "| SimCLR + EquiMod | 0.500 ± 0.141 | – | – | – | – | – |" in table
    assert "| SimCLR + EquiMod | 0.750 ± 0.000 | – | – |" in table
    assert not [line for line in table if line.startswith("| SimCLR, ")]
    assert "| ranks of the true view among 16 | MRR | H@1 | H@5 |" in table
    for run in rows[1]["runs"]:
        run["eval"] |= {"equivariance_absolute_identity": -0.03, "retrieval_pre": 0.5}
    operators, _, ranks = sweep_tables.figure_rows({**SWEEP, "rows": rows})
    assert (operators.columns[-1], operators.rows[0][-1]) == ("identity", "-0.030 ± 0.000")
    assert (ranks.columns[-1], ranks.rows[0][-1]) == ("PRE", "0.500 ± 0.000")


def test_a_caption_says_how_many_seeds_there_are() -> None:
    trained = "resnet18 width 16, 20 epochs of 50,000 images. "
    assert comparison.caption(SWEEP) == f"{trained}Means ± standard deviation over 2 seeds, on the test images."
    assert comparison.caption({"rows": SWEEP["rows"][:1]}) == f"{trained}One seed, on the test images."


def test_the_newest_result_counts_whatever_the_name_of_its_file(results: Path) -> None:
    (results / "a.json").write_text(json.dumps({**LOADER, "date": "2026-12-01T00:00:00+00:00"}))
    (results / "z.json").write_text(json.dumps({**LOADER, "date": "2026-11-01T00:00:00+00:00"}))
    assert "2026-12-01" in render_tables(README, results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: step -->\n<!-- end -->\n", "table 'step' is not known"),
        ("<!-- table: loader -->\n", "no '<!-- end -->'"),
    ],
)
def test_markers_that_cannot_be_filled_are_refused(results: Path, text: str, message: str) -> None:
    with pytest.raises(ReadmeError, match=message):
        render_tables(text, results)


def test_a_table_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadmeError, match="holds no result of 'loader'"):
        render_tables(README, tmp_path)


def test_check_changes_nothing_and_fails_on_stale_documents(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [tmp_path / "README.md", tmp_path / "without.md", tmp_path / "more.md"]
    for path, text in zip(documents, (README, "no table\n", README), strict=True):
        path.write_text(text)
    arguments = ["--documents", *map(str, documents), "--results", str(results)]
    assert main(["--check", *arguments]) == 1
    error = "error: stale or missing: README.md, more.md, table1-cpu.png; run python benchmarks/readme.py\n"
    assert capsys.readouterr().err == error
    assert documents[0].read_text() == README
    assert main(arguments) == 0
    assert main(["--check", *arguments]) == 0
    assert documents[1].read_text() == "no table\n"
    (results / "table1-cpu.png").unlink()
    assert main(["--check", *arguments]) == 1
    assert "stale or missing: table1-cpu.png; run" in capsys.readouterr().err


def test_growth_has_what_was_before_and_after(tmp_path: Path) -> None:
    ranks = [{"records_bytes": 2**20 * size, "open_seconds": size} for size in (3, 1)]
    epochs = [{"images_per_second": rate, "bytes": read} for rate, read in ((1000, 100), (2000, 70), (1500, 80))]
    for name in ("ranks-tar", "ranks-beton", "disk-window", "disk-random"):
        for when, times in (("-before", 2), ("", 1)):
            of_ranks = [{key: value * times for key, value in rank.items()} for rank in ranks]
            result = {"benchmark": name + when, "date": "2026", "ranks": of_ranks, "epochs": epochs, "data_bytes": 100}
            (tmp_path / f"{name}{when}.json").write_text(json.dumps(result))
    text = render_tables("<!-- table: growth -->\n<!-- end -->\n", tmp_path)
    assert (
        "[2 to 6](../benchmarks/results/ranks-tar-before.json) | [1 to 3](../benchmarks/results/ranks-tar.json)" in text
    )
    assert "[1,000 to 2,000](../benchmarks/results/disk-window.json)" in text
    assert "[0.70 to 0.80](../benchmarks/results/disk-random.json)" in text  # from the second epoch on
