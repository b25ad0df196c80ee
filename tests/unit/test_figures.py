"""The figures of a run: what they show, and that they are written alike each time."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.train.evaluation import figures

POLICY = POLICIES["simclr_cifar10"]


def _metrics(folder: Path, equimod: bool = True) -> Path:
    path = folder / "metrics.jsonl"
    rates = {"images_per_s": 100.0, "data_wait": 0.0}
    events: list[dict[str, object]] = [{"event": "checkpoint", "step": 2, "name": "step-2"}]
    for step in (2, 4, 6):
        losses = {"loss": 9 - step, "invariance": 5 - step / 2}
        if equimod:
            losses["equivariance"] = 4 - step / 2
        events.append({"event": "step", "step": step, "epoch": 0, "lr": 0.1 * step, **losses, **rates})
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from here on."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    return kept


@pytest.mark.parametrize(
    ("equimod", "names"), [(True, ["loss", "invariance", "equivariance"]), (False, ["loss"])], ids=["equimod", "alone"]
)
def test_losses_are_drawn_over_the_steps(tmp_path: Path, drawn: list[Figure], equimod: bool, names: list[str]) -> None:
    figures.draw_losses(_metrics(tmp_path, equimod), tmp_path / "loss.png", "title")
    losses, rate = drawn[0].axes
    assert [line.get_label() for line in losses.lines] == names
    np.testing.assert_allclose(losses.lines[0].get_xydata(), [(2, 7), (4, 5), (6, 3)])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.2, 0.4, 0.6])


def test_a_run_that_logged_no_step_yet_has_an_empty_figure(tmp_path: Path, drawn: list[Figure]) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    figures.draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png", "title")
    assert len(drawn[0].axes[0].lines[0].get_xydata()) == 0


def test_the_sheet_shows_the_first_samples_of_the_training(image_tree: Path, drawn: list[Figure]) -> None:
    records = open_records(image_tree)
    figures.draw_views(records, POLICY, image_tree / "views.png", seed=3)
    batch = next(build_pipeline(records, POLICY, batch_size=8, seed=3).epoch(0))
    parts = drawn[0].subfigs
    assert len(parts) == 6
    for sample, part in enumerate(parts):
        images = [batch.x, *(view.image for view in batch.views)]
        for axes, image in zip(part.axes, images, strict=True):
            shown = torch.from_numpy(np.asarray(axes.images[0].get_array(), dtype=np.float32)).permute(2, 0, 1)
            mean, std = (torch.tensor(v)[:, None, None] for v in (POLICY.x.normalize.mean, POLICY.x.normalize.std))
            torch.testing.assert_close((shown - mean) / std, image[sample], atol=1e-4, rtol=0)
        size = records.size[int(batch.index[sample])].tolist()
        texts = [axes.texts[0].get_text() for axes in part.axes]
        assert records.classes[int(batch.label[sample])] in texts[0]
        assert texts[1:] == [figures.describe(view.params, sample, size) for view in batch.views]


def test_bars_of_each_operator_stand_beside_the_line_of_invariance(tmp_path: Path, drawn: list[Figure]) -> None:
    found = {"equivariance_absolute": 0.3, "equivariance_absolute_ci95": 0.1, "knn_top1": 50.0}
    for form, value in (("absolute", 0.2), ("relative", 2.0)):
        for k, operator in enumerate(("crop", "gray")):
            found[f"equivariance_{form}_{operator}"] = value + k
            found[f"equivariance_{form}_{operator}_ci95"] = 0.05
    figures.draw_equivariance(found, tmp_path / "equivariance.png", "title")
    for axes, heights, invariance in zip(drawn[0].axes, ([0.2, 1.2], [2.0, 3.0]), (0, 1), strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["crop", "gray"]
        np.testing.assert_allclose([bar.get_height() for bar in axes.patches], heights)
        (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert set(dashed.get_ydata()) == {invariance}
        (intervals,) = next(c for c in axes.containers if isinstance(c, ErrorbarContainer)).lines[2]
        ends = [segment[:, 1].tolist() for segment in intervals.get_segments()]
        np.testing.assert_allclose(ends, [[height - 0.05, height + 0.05] for height in heights])


def _params(**drawn: object) -> AugmentationParams:
    flags = {name: torch.tensor([bool(drawn.get(name))]) for name in ("flip", "jitter", "gray", "blur", "solarize")}
    return AugmentationParams(
        crop=torch.tensor([[12, 9, 120, 96]]),
        factors=torch.tensor([[1.13, 1.0, 0.84, -0.09]]),
        order=torch.tensor([[3, 1, 2, 0]]),
        sigma=torch.tensor([1.234]),
        **flags,
    )


def test_the_text_names_what_was_done_in_its_order() -> None:
    everything = _params(flip=True, jitter=True, gray=True, blur=True, solarize=True)
    assert figures.describe(everything, 0, (300, 200)).splitlines() == [
        "crop 12,9 120×96 of 300×200",
        "flip",
        "jitter hue -0.09, contrast 1.00,",
        "saturation 0.84, brightness 1.13",
        "gray, blur sigma 1.23 px, solarize",
    ]


def test_the_text_does_not_name_what_was_not_done() -> None:
    assert figures.describe(_params(), 0, (300, 200)) == "crop 12,9 120×96 of 300×200"


def test_figures_are_the_same_bytes_each_time(image_tree: Path, tmp_path: Path) -> None:
    metrics, records = _metrics(tmp_path), open_records(image_tree)
    for take in ("a", "b"):
        figures.draw_losses(metrics, tmp_path / take / "loss.png", "title")
        figures.draw_views(records, POLICY, tmp_path / take / "views.png", seed=0)
    for name in ("loss.png", "views.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert matplotlib.image.imread(tmp_path / "a" / name).std() > 0.05
