"""The benchmark of what grows with the data, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equimod.benchmarks import scale
from equimod.benchmarks.growth import disk
from equimod.benchmarks.growth.at_url import AtUrl
from equimod.benchmarks.growth.disk import Disk
from equimod.benchmarks.growth.features import KeptFeatures
from equimod.benchmarks.growth.ranks import Ranks
from equimod.benchmarks.growth.synthetic import DIFFERENT
from equimod.pipelines.records import open_records


@pytest.mark.ci
@pytest.mark.parametrize("form", ["tar", "beton"])
def test_every_epoch_is_measured(form: str, tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--images", "300", "--kilobytes", "8", "--format", form, "--memory", "0"]
    options += ["--window", "256", "--batch-size", "50", "--epochs", "2", "--output", str(tmp_path / "out.json")]
    assert scale.main(["disk", *options]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["benchmark"] == "epochs"  # neither memory nor requests are limited
    assert result["data_bytes"] == 300 * 8 * 1024
    assert len(result["epochs"]) == 2
    assert all(epoch["images_per_second"] > 0 for epoch in result["epochs"])
    (table,) = Disk.rows(result)
    assert [row[0] for row in table.rows] == ["1", "2"]
    (table,) = Disk.rows({**result, "epochs": [result["epochs"][0]] * 11})
    assert [row[0] for row in table.rows] == ["1", "5", "10"]
    assert "300 synthetic images of 8 KiB" in Disk.caption(result)
    records = open_records(tmp_path / f"images-300-8.{form}")
    assert (records.length == 8 * 1024).all()
    assert len(set(records.checksum.tolist())) == DIFFERENT


def test_a_number_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["disk", "--folder", str(tmp_path), "--batch-size", "0"]) == 2
    assert capsys.readouterr().err == "error: --batch-size 0 is too small; give 1 or more\n"


def test_without_groups_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk, "CGROUPS", tmp_path / "none")
    options = ["--folder", str(tmp_path), "--images", "300", "--kilobytes", "3", "--epochs", "1"]
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


@pytest.mark.ci
@pytest.mark.parametrize("form", ["tar", "beton"])
def test_ranks_are_measured_and_the_conversion_before(form: str, tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--images", "3000", "--format", form, "--ranks", "2", "--steps", "3"]
    options += ["--batch-size", "64", "--output", str(tmp_path / "out.json")]
    assert scale.main(["ranks", *options]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert min(result["conversion"].values()) > 0
    assert len(result["ranks"]) == 2
    for rank in result["ranks"]:
        assert rank["first_batch_seconds"] > rank["open_seconds"] > 0
        assert rank["peak_bytes"] >= rank["resident_bytes"] / 2 > rank["records_bytes"]
        assert rank["images_per_second"] > 0
    (table,) = Ranks.rows(result)
    assert [row[0] for row in table.rows] == ["0", "1"]
    assert "3,000 synthetic images of 1 KiB" in Ranks.caption(result)
    assert "Converted at" in Ranks.caption(result)


@pytest.mark.ci
def test_a_url_is_measured_beside_the_folder(tmp_path: Path) -> None:
    options = [
        "--folder",
        str(tmp_path),
        "--images",
        "600",
        "--kilobytes",
        "8",
        "--window",
        "256",
        "--batch-size",
        "50",
    ]
    assert scale.main(["url", *options, "--rounds", "1", "--output", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert all(rates[0] > 0 for rates in result["images_per_second"].values())
    (table,) = AtUrl.rows(result)
    assert [row[0] for row in table.rows] == ["in place", "from a URL, first", "from a URL, again"]
    assert table.rows[0][3] == "1.00"
    assert "600 synthetic images of 8 KiB" in AtUrl.caption(result)
