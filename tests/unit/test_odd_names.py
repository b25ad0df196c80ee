"""Folders of any name: every command works in them, and prints the name in one line that harms no terminal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call

from equimod.tools.compare_runs import main as compare
from equimod.tools.convert_imagenet import main as convert
from equimod.tools.inspect_records import main as inspect
from equimod.tools.verify import main as verify
from equimod.train.evaluate import main as evaluate
from equimod.train.evaluation.table import Table
from equimod.train.main import main as train

NAME = "a\n\x1b[31m[/b] \u202eé"
"""A new line, a terminal's command, markup of rich, text from right to left, and a letter beyond ASCII."""
PRINTED = r"a\n\x1b[31m[/b] \u202eé"


@pytest.fixture(scope="module")
def folder(image_tree: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that name, with images and a run."""
    folder = tmp_path_factory.mktemp("odd") / NAME
    shutil.copytree(image_tree, folder / "images")
    return folder


def _answered(main: Callable[[], int], *arguments: object) -> str:
    answer = call(main, *arguments)
    assert answer.code == 0, answer.err
    said = answer.out + answer.err
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202e]", said), repr(said)
    return said


def test_every_command_says_the_name_in_one_line(folder: Path, options: list[str]) -> None:
    images, run, records = folder / "images", folder / "run", folder / "records"
    short = ["--epochs", "1", "--optim.warmup-epochs", "0", "--data", images, "--val", images, "--output", run]
    assert PRINTED in _answered(train, *options, *short)
    assert PRINTED in _answered(evaluate, run, "--knn", "--figures")
    assert PRINTED in _answered(convert, images, records, "--workers", "1")
    assert PRINTED in _answered(inspect, records, "--sheet", folder / "sheet.png")
    assert PRINTED in _answered(verify, run, records, images)
    shutil.copytree(run, folder / "other")
    assert PRINTED in _answered(compare, run, folder / "other", "--output", folder / "compared.png")


def test_tables_show_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Table(["run"], [[NAME]]).show()
    assert PRINTED in capsys.readouterr().out


def test_errors_say_it_in_one_line(folder: Path) -> None:
    for main in (inspect, verify, evaluate):
        answer = call(main, folder / "nothing")
        assert answer.code in (1, 2)
        assert answer.err.count("\n") == 1
        assert "\x1b" not in answer.err + answer.out
