"""The command `equimod`: every word leads to its script, and what is wrong has one line."""

from __future__ import annotations

import os
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from commands import call

from equimod.tools import train as train_tool
from equimod.tools.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help_under_its_own_name(name: str) -> None:
    answer = call(main, name, "--help")
    assert answer.code == 0, answer.err
    assert f"usage: equimod {name}" in answer.out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_alone_it_says_what_to_do_first(words: list[str]) -> None:
    answer = call(main, *words)
    assert (answer.code, answer.err) == (0, "")
    assert "equimod train --method simclr --equimod" in answer.out
    assert all(f"  {name} " in answer.out for name in COMMANDS)


def test_a_misspelt_command_has_a_hint() -> None:
    answer = call(main, "trian")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: equimod has no command 'trian' (did you mean train?)")
    assert "did you mean" not in call(main, "xyz").err


def test_the_installed_command_is_this_one() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["equimod"].partition(":")
    assert getattr(import_module(module), function) is main


def test_gpus_start_torchrun_with_the_other_options(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append([program, *words]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert call(main, "train", "--method", "simclr", "--gpus", "4", "--epochs", "3").code == 0
    assert call(main, "train", "--gpus=2", "--method", "byol").code == 0
    head = [sys.executable, sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for words, gpus, rest in (
        (started[0], "4", ["--method", "simclr", "--epochs", "3"]),
        (started[1], "2", ["--method", "byol"]),
    ):
        assert words[: len(head)] == head
        assert words[words.index("--nproc-per-node") :] == ["--nproc-per-node", gpus, "-m", "equimod.train.main", *rest]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus 0: give a number of 1 or more"),
        (["--gpus", "two"], "--gpus two: give a number of 1 or more"),
        (["--gpus", "3"], "--gpus 3: 2 are here; give as many, or leave it out"),
    ],
)
def test_gpus_that_are_not_there_are_refused(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    answer = call(train_tool.main, *words, "--method", "simclr")
    assert (answer.code, answer.err) == (2, f"error: {message}\n")


def test_on_the_cpu_there_may_be_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    assert call(train_tool.main, "--gpus", "2", "--system.device", "cpu").code == 0
    assert started[0][-2:] == ["--system.device", "cpu"]
