"""The report of runs: what it says of each and shows of images, that names cannot break it, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from commands import call

from equimod.tools.report import main
from equimod.train.html_report import charts, contents, page
from equimod.train.html_report.contents import Run
from equimod.train.html_report.images import project
from equimod.train.main import main as train

HOSTILE = "<script>alert(1)"
HEADINGS = [
    "Configuration",
    "Losses and learning rate",
    "Where time went",
    "Scores",
    "Equivariance per operator",
    "Views with their parameters",
    "Nearest neighbours",
    "Map of the features",
    "Files",
]
OPERATORS = {"equivariance_absolute_crop": 0.25, "equivariance_absolute_crop_ci95": 0.125}
OPERATORS |= {"equivariance_relative_crop": 2.0, "equivariance_relative_crop_ci95": 0.5}


def _run(folder: Path, settings: str = "", val: str = "val", **scores: float) -> Path:
    """An evaluated run of two steps, whose images and checkpoints are gone."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"batch_size: 600\ndata: [gone]\n{settings}")
    used = {"train_images": 80, "val": val, "val_images": 20, "seed": 3, "seconds": 1.5, "k": 200}
    (folder / "eval.json").write_text(
        json.dumps({**scores, "weights": "", "checkpoint": "step-2", "evaluators": {"knn": used}})
    )
    told = {"event": "step", "loss": 1.0, "lr": 0.5, "images_per_s": 60.0, "data_wait": 0.0}
    seconds = {"wait": 1.0, "forward": 6.0, "backward": 2.0, "draw": 4.0}
    steps = [{**told, "step": step, "seconds": seconds} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of SimCLR and one of SimCLR + EquiMod."""
    return [
        _run(tmp_path / "a", "seed: 0\n", knn_top1=50.0),
        _run(tmp_path / "b", "equimod: true\nequivariance: {weight: 0.5}\n", knn_top1=60.0, **OPERATORS),
        _run(tmp_path / "c", "seed: 1\n", knn_top1=52.0, knn_top5=90.0),
    ]


@pytest.fixture(scope="module")
def trained(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    assert train([*options, "--epochs", "2", "--output", str(folder), "--system.device", "cpu"]) == 0
    return folder


def _gather(*folders: Path) -> list[Run]:
    return contents.gather(folders, pytest.fail)


def _report(path: Path, *arguments: object) -> str:
    """The report that the command writes to `path`."""
    answer = call(main, *arguments, "--output", path)
    assert (answer.code, answer.err) == (0, ""), answer.err
    assert answer.out.splitlines()[-1] == f"report: {path}"
    return path.read_text(encoding="utf-8")


class _Elements(HTMLParser):
    """Tags with their attributes, and the text of headings."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.tags and re.fullmatch("h[1-6]", self.tags[-1][0]) and data.strip():
            self.headings.append((self.tags[-1][0], data))

    def values(self, name: str) -> list[str]:
        """Those of the attributes of this name."""
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def test_it_has_every_section_in_order_for_one_run_and_for_several(runs: list[Path], tmp_path: Path) -> None:
    for folders in (runs[:1], runs):
        headings = _Elements(_report(tmp_path / "report.html", *folders)).headings
        assert [level for level, _ in headings].count("h1") == 1
        assert [text for level, text in headings if level == "h2"] == HEADINGS
        levels = [1, *(int(level[1]) for level, _ in headings)]
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_it_says_what_a_run_is(trained: Path) -> None:
    (run,) = _gather(trained)
    assert run.facts["method"] == "simclr + EquiMod"
    assert run.facts["trained"].startswith("6 steps of 8 images, ")
    assert run.facts["checkpoint"] == "step-00000006, 2 of 2 epochs"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", run.facts["begun"])
    assert re.fullmatch(r"equimod \S+, digest [0-9a-f]{12}", run.facts["code"])
    assert "python" in run.facts["versions"]


def test_code_is_told_by_its_commit_where_it_is_here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "provenance", lambda *_: {"commit": {"sha": 40 * "a", "dirty": True}})
    (run,) = _gather(trained)
    assert run.facts["code"] == "commit aaaaaaaaaa with changes"
    monkeypatch.setattr(contents, "code_digests", dict)
    assert "digest" in run.facts["code"]


def test_settings_that_differ_are_told_apart_from_the_others(runs: list[Path]) -> None:
    found = contents.differing(_gather(*runs))
    assert found["equimod"] == ["False", "True", "False"]
    assert found["seed"] == ["0", "0", "1"]
    assert found["equivariance.weight"] == ["–", "0.5", "–"]  # has no effect in the others
    assert not {"batch_size", "output", "data"} & found.keys()


def test_settings_have_the_paths_of_config_yaml() -> None:
    nested = {"a": {"b": [1, 2], "c": []}, "views": [{"p": 0.5}, {"p": None}]}
    assert contents.flat(nested) == {"a.b": "1 2", "a.c": "[]", "views.0.p": "0.5", "views.1.p": "None"}


def test_scores_stand_with_their_intervals_and_seeds_with_their_mean(runs: list[Path]) -> None:
    table = page.scores(_gather(*runs))
    assert table.columns == ["", "a", "c", "simclr, mean of 2", "b"]
    assert table.rows == [
        ["class, kNN top-1, %", "50.0", "52.0", "51.0 ± 1.4", "60.0"],
        ["equivariance absolute crop", "–", "–", "–", "0.250\n0.125 to 0.375"],
        ["equivariance relative crop", "–", "–", "–", "2.000\n1.500 to 2.500"],
        ["class, kNN top-5, %", "–", "90.0", "–", "–"],
    ]


def test_what_scores_were_measured_on_is_told(runs: list[Path], trained: Path, tmp_path: Path) -> None:
    html = _report(tmp_path / "report.html", *runs)
    assert "a: knn" in html
    assert "k 200" in html
    assert "different images" not in html
    assert "Scores are on different images: elsewhere, val." in _report(
        tmp_path / "report.html", runs[0], _run(tmp_path / "d", val="elsewhere", knn_top1=1.0)
    )
    again = Path(shutil.copytree(trained, tmp_path / "again"))
    shutil.copy(runs[0] / "eval.json", again)
    note = "again was evaluated at step-2, and its newest checkpoint is step-00000006."
    assert note in _report(tmp_path / "report.html", again, "--samples", 0)


def test_a_run_that_was_not_evaluated_says_how(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "eval.json").unlink()
    assert f"<code>equimod evaluate {runs[0]}</code>" in _report(tmp_path / "report.html", *runs)


def test_a_run_that_has_only_begun_has_a_report(runs: list[Path], tmp_path: Path) -> None:
    for name in ("eval.json", "metrics.jsonl"):
        (runs[0] / name).unlink()
    html = _report(tmp_path / "report.html", runs[0])
    assert "No step was logged yet." in html
    assert "this one has none" in html


def test_curves_have_a_line_a_run_and_the_parts_of_a_loss_that_has_several(runs: list[Path], trained: Path) -> None:
    assert [chart.title for chart in charts.curves(_gather(*runs))] == ["loss", "learning rate"]
    drawn = charts.curves(_gather(runs[0], trained))
    assert [chart.title for chart in drawn] == ["loss", "loss of the method", "loss of EquiMod", "learning rate"]
    assert [name for _, name in drawn[0].legend] == ["a", "run"]


def test_shares_of_the_training_thread_are_those_of_the_steps(runs: list[Path]) -> None:
    chart = charts.training_thread(_gather(runs[0])[0])
    assert chart is not None
    shares = dict(name.split() for _, name in chart.legend)
    assert {k: v for k, v in shares.items() if v != "0%"} == {
        "wait": "10%",
        "forward": "60%",
        "backward": "20%",
        "other": "10%",
    }


def test_operators_are_drawn_in_the_colour_of_their_run(runs: list[Path]) -> None:
    absolute, relative = charts.equivariance(_gather(*runs))
    assert (absolute.title, relative.title) == ("absolute equivariance", "relative equivariance")
    assert absolute.legend == [("#ff7f0e", "b")]
    assert ">crop</text>" in absolute.svg
    assert charts.equivariance(_gather(runs[0])) == []


def test_where_the_images_are_there_they_are_shown(trained: Path, image_tree: Path, tmp_path: Path) -> None:
    html = _report(tmp_path / "report.html", trained)
    pictures = [attributes for tag, attributes in _Elements(html).tags if tag == "img"]
    assert len(pictures) == 6 * 3 + 6 * 7  # x and two views of six samples; six queries, each with six neighbours
    assert all(str(a["src"]).startswith("data:image/png;base64,") and a["alt"] for a in pictures)
    assert "the first samples of its training" in html
    assert "24 images of" in html
    assert "crop " in html
    assert "cannot be shown" not in html
    other = Path(shutil.copytree(image_tree / "class_0", tmp_path / "other" / "one"))
    html = _report(tmp_path / "report.html", trained, "--data", other.parent, "--samples", 5)
    assert "the first samples of its training" not in html
    assert f"run: views of {other.parent} as it would draw them" in html
    assert f"5 images of {other.parent}" in html


def test_images_that_are_gone_are_named_and_others_asked_for(runs: list[Path], tmp_path: Path) -> None:
    html = _report(tmp_path / "report.html", runs[0])
    assert "The images of a cannot be shown: gone " in html
    assert "--data PATH" in html
    answer = call(main, runs[0], "--data", tmp_path / "none", "--output", tmp_path / "other.html")
    assert answer.code == 1
    assert answer.err.startswith(f"error: {tmp_path / 'none'}")
    assert not (tmp_path / "other.html").exists()


def test_images_are_left_out_when_told_to(trained: Path, tmp_path: Path) -> None:
    html = _report(tmp_path / "report.html", trained, "--no-images")
    assert "<img" not in html
    assert "data:image" not in html
    assert "Images are left out, by --no-images." in html
    assert "map of the features of run" in html
    assert "map of the features of run" not in _report(tmp_path / "report.html", trained, "--samples", 0)


def test_names_cannot_break_it(trained: Path, image_tree: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / f"{HOSTILE}\udcff"))
    tree = tmp_path / "tree"
    shutil.copytree(image_tree / "class_0", tree / HOSTILE)
    shutil.copytree(image_tree / "class_1", tree / "_$x$")
    used = {"train_images": 1, "val": HOSTILE, HOSTILE: HOSTILE}
    operator = f"equivariance_absolute_{HOSTILE}$\\x$"
    scores = {**OPERATORS, HOSTILE: 1.0, operator: 1.0, f"{operator}_ci95": 0.5}
    (run / "eval.json").write_text(json.dumps({**scores, "weights": "", "evaluators": {HOSTILE: used}}))
    html = _report(tmp_path / "report.html", run, trained, "--data", tree)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    elements = _Elements(html)
    assert "_$x$" in re.findall(r"</i>([^<]*)</li>", html)
    assert not {"script", "iframe", "object", "link", "base"} & {tag for tag, _ in elements.tags}
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]


def test_it_needs_nothing_from_elsewhere(trained: Path, tmp_path: Path) -> None:
    html = _report(tmp_path / "report.html", trained)
    elements = _Elements(html)
    addresses = [a for name in ("src", "href", "xlink:href", "srcset") for a in elements.values(name)]
    assert addresses
    assert not [address[:80] for address in addresses if not address.startswith(("#", "data:image/png;base64,"))]
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)[^)]*\)", html)
    ids = elements.values("id")
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)


def test_files_are_links_where_the_report_lies_beside_them(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert call(main, run, "--no-images", "--samples", 0).code == 0
    inside = _Elements((run / "report.html").read_text(encoding="utf-8")).values("href")
    files = [address for address in inside if not address.startswith("#")]
    assert {"config.yaml", "metrics.jsonl", "checkpoints"} <= set(files)
    assert all((run / name).exists() for name in files)
    html = _report(tmp_path / "report.html", run, "--no-images", "--samples", 0)
    assert all(address.startswith("#") for address in _Elements(html).values("href"))


def test_equal_runs_give_equal_bytes(trained: Path, tmp_path: Path) -> None:
    assert _report(tmp_path / "a.html", trained) == _report(tmp_path / "b.html", trained)
    copy = Path(shutil.copytree(trained, tmp_path / "run", copy_function=shutil.copyfile))
    again = _report(tmp_path / "c.html", copy)
    assert again.replace(str(copy), str(trained)) == (tmp_path / "a.html").read_text(encoding="utf-8")


def test_damage_is_one_line(runs: list[Path], trained: Path, tmp_path: Path) -> None:
    run = runs[0]
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"event": "time", "step": 2, "wall_seconds": 1.0, "stages": 7}\n')
    answer = call(main, run)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith(f"error: {run / 'metrics.jsonl'} is damaged: its last table of times has ")
    (run / "metrics.jsonl").write_text("no event\n")
    assert f"{run / 'metrics.jsonl'}: 1 damaged line(s) left out" in call(main, run).out
    for name, text in (("eval.json", "{"), ("config.yaml", "epochs: many\n")):
        (run / name).write_text(text)
        answer = call(main, run)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert f"error: {run / name}" in answer.err
    broken = Path(shutil.copytree(trained, tmp_path / "broken"))
    for path in broken.glob("checkpoints/step-*/state.json"):
        path.write_text("{}")
    answer = call(main, broken)
    assert answer.code == 0
    assert "holds no sound checkpoint" in answer.out
    assert "The images of broken cannot be shown" in (broken / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("package", "extra", "options"), [("jinja2", "report", []), ("umap", "umap", ["--map=umap"])])
def test_an_extra_that_is_missing_is_named(
    package: str, extra: str, options: list[str], runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    answer = call(main, runs[0], *options)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert f"pip install 'equimod[{extra}]'" in answer.err
    assert not (runs[0] / "report.html").exists()


def test_what_cannot_be_used_is_refused(runs: list[Path], tmp_path: Path) -> None:
    for arguments, message in (
        ([], "no run is given"),
        ([tmp_path], f"{tmp_path} holds no run (no config.yaml)"),
        ([runs[0], "--samples", -1], "--samples -1 is too small; give 0 or more"),
        ([runs[0], "--output", tmp_path / "no" / "report.html"], f"make {tmp_path / 'no'}"),
        ([runs[0], "--output", tmp_path], f"--output {tmp_path} is a folder; give the name of a file in it"),
    ):
        answer = call(main, *arguments)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert message in answer.err


def test_the_map_keeps_what_varies_most() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 2)) * [0.02, 0.01]
    h = np.concatenate([np.ones((50, 1)), plane, np.zeros((50, 5))], axis=1).astype(np.float32)
    points = project(7 * h, "pca")  # whatever their length
    assert points.shape == (50, 2)
    for component, column in zip(points.T, plane.T, strict=True):
        assert abs(np.corrcoef(component, column)[0, 1]) > 0.95
        assert component[abs(component).argmax()] > 0
