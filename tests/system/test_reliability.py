"""The campaigns of benchmarks/reliability.py in their quick form, and what they say of a product that is broken."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from equimod.benchmarks import reliability
from equimod.benchmarks.campaigns import endings, flips, fuzz, toys
from equimod.pipelines.durable import kept
from equimod.pipelines.records.tar import TarRecords
from equimod.pipelines.stored import Digests

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.ci
@pytest.mark.parametrize("name", reliability.CAMPAIGNS)
def test_every_promise_holds(name: str) -> None:
    found = reliability.tried(name, 0, reliability.CAMPAIGNS[name].quick)
    assert found["faults"] == []
    assert found["trials"] == reliability.CAMPAIGNS[name].quick


def test_every_promise_names_a_test_that_is_there() -> None:
    for campaign in reliability.CAMPAIGNS.values():
        path, _, name = campaign.test.partition("::")
        assert f"def {name}(" in (CHECKOUT / path).read_text(encoding="utf-8"), campaign.test


def _without_digests(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Digests, "check", lambda *_: None)
    patch.setattr(Digests, "read_file", lambda self, folder, name: (folder / name).read_bytes())


def _with_other_options(patch: pytest.MonkeyPatch, *options: str) -> None:
    """Trainings and conversions have options of their own, but for those that nothing ends, beside their images."""
    for name in ("train", "conversion"):
        patch.setattr(toys, name, partial(_with_options, getattr(toys, name), options))


def _with_options(
    command: Callable[..., list[str]], options: Sequence[str], images: Path, output: Path, *more: str, **named: int
) -> list[str]:
    return [*command(images, output, *more, **named), *(() if (output.parent / "tree").exists() else options)]


BREAK: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "checkpoint-flips": (_without_digests, "other weights, settings or position are read"),
    "record-flips": (
        lambda patch: patch.setattr(TarRecords, "verify_shard", lambda *_: None),
        r"\.idx flipped: it is not noticed",
    ),
    "fallback": (
        lambda patch: patch.setattr(flips, "first_sound", lambda folder, load, _: load(kept(folder)[0])),
        "DamagedFileError",
    ),
    "fuzz": (lambda patch: patch.setattr(fuzz, "read_scores", lambda run: {}["a"]), r"scores: KeyError\('a'\)"),
    "kills": (
        lambda patch: _with_other_options(patch, "--seed", "1"),
        "another configuration: seed|other than undisturbed",
    ),
    "terminations": (lambda patch: patch.setattr(endings, "GONE", 0.0), r"of its processes are there after 0 s"),
    "conversion-kills": (lambda patch: _with_other_options(patch, "--max-side", "10"), "other bytes than"),
}


@pytest.mark.ci
@pytest.mark.parametrize("name", BREAK)
def test_a_broken_promise_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wreck, said = BREAK[name]
    wreck(monkeypatch)
    trials = {"fuzz": 30, "record-flips": 60, "kills": 1, "terminations": 3, "conversion-kills": 1}.get(name, 12)
    assert reliability.main(["--only", name, "--trials", str(trials)]) == 1
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("slow", [1, 2])
def test_only_what_costs_too_much_again_is_the_files_fault(
    slow: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    (tmp_path / "file").write_bytes(b"0" * 1000)
    times = iter([0.4] * slow + [0.0])

    def read(_: Path) -> None:
        end = time.process_time() + next(times)
        while time.process_time() < end:
            pass

    trial = fuzz.answer("a file", fuzz.Target(tmp_path / "file", read))
    assert ("of the processor" in trial.fault) == (slow == 2)
