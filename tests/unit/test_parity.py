"""benchmarks/parity.py: what it compares, and that a backend that is off is seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from equimod.benchmarks.parity import OPERATOR_POLICIES, main, policies
from equimod.pipelines.backends import BACKENDS, Images, Request
from equimod.pipelines.backends.native_backend import NativeBackend


class _Brighter(NativeBackend):
    def load(self, requests: Iterator[Request]) -> Iterator[Images]:
        for images in super().load(requests):
            views = tuple((view.clamp(max=245) + 10).to(torch.uint8) for view in images.views)
            yield Images(images.x, views)


def test_every_operator_has_a_row_and_native_is_near(image_tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "parity.json"
    assert main(["--records", str(image_tree), "--backends=native", "--images=3", f"--output={output}"]) == 0
    result = json.loads(output.read_text())
    names = [row["operator"] for row in result["rows"]]
    assert names[:2] == ["x: resize and centre crop", "crop and resize"]
    assert set(OPERATOR_POLICIES) | set(policies()) <= set(names)
    assert all(row["backends"]["native"]["worst_image"] < 0.5 for row in result["rows"])


def test_a_backend_that_is_off_is_seen(image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "native", lambda: _Brighter)
    output = tmp_path / "parity.json"
    assert main(["--records", str(image_tree), "--backends=native", "--images=2", f"--output={output}"]) == 0
    rows = {row["operator"]: row["backends"]["native"] for row in json.loads(output.read_text())["rows"]}
    assert rows["crop and resize"]["mean"] > 5
    assert rows["x: resize and centre crop"]["mean"] < 0.5


def test_an_unknown_backend_is_one_line(image_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--records", str(image_tree), "--backends=nativ"]) == 2
    assert capsys.readouterr().err.startswith("error: backend='nativ' is not known")
