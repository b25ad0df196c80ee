"""The benchmark of what grows with the data, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equimod.benchmarks import scale
from equimod.benchmarks.growth import disk
from equimod.benchmarks.growth.disk import Disk
from equimod.benchmarks.growth.features import KeptFeatures
from equimod.pipelines.records import open_records


@pytest.mark.ci
@pytest.mark.parametrize("form", ["tar", "beton"])
def test_every_epoch_is_measured(form: str, tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--images", "300", "--kilobytes", "8", "--format", form, "--memory", "0"]
    options += ["--window", "256", "--batch-size", "50", "--epochs", "2", "--output", str(tmp_path / "out.json")]
    assert scale.main(["disk", *options]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["benchmark"] == "disk-window"
    assert result["data_bytes"] == 300 * 8 * 1024
    assert len(result["epochs"]) == 2
    assert all(epoch["images_per_second"] > 0 for epoch in result["epochs"])
    (table,) = Disk.rows(result)
    assert [row[0] for row in table.rows] == ["1", "2"]
    assert "300 synthetic images of 8 KiB" in Disk.caption(result)
    records = open_records(tmp_path / f"images-300-8.{form}")
    assert (records.length == 8 * 1024).all()
    assert len(set(records.checksum.tolist())) == disk.DIFFERENT


def test_a_number_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["disk", "--folder", str(tmp_path), "--batch-size", "0"]) == 2
    assert capsys.readouterr().err == "error: --batch-size 0 is too small; give 1 or more\n"


def test_without_groups_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk, "CGROUPS", tmp_path / "none")
    options = ["--folder", str(tmp_path), "--images", "64", "--kilobytes", "3", "--epochs", "1"]
    assert scale.main(["disk", *options]) == 1
    assert "no cgroup can be made" in capsys.readouterr().err


@pytest.mark.ci
def test_evaluation_on_kept_features_is_measured(tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--images", "5000", "--features", "8", "--classes", "7"]
    options += ["--queries", "9", "--steps", "3", "--dtype", "bfloat16", "--output", str(tmp_path / "out.json")]
    assert scale.main(["features", *options]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(list((tmp_path / "features-5000-8-bfloat16").glob("block-*"))) == 2
    (table,) = KeptFeatures.rows(result)
    assert table.rows[0][0] == "0.00"
    assert result["peak_bytes"] > result["resident_before_bytes"] > 0
    assert min(result["queries_per_second"], result["steps_per_second"]) > 0
    assert "8 drawn features of 5,000 images in bfloat16, 7 classes" in KeptFeatures.caption(result)
