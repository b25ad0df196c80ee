"""Trainings and conversions are ended from outside at any moment, and gone on with until they are done."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from equimod.benchmarks.campaigns import toys
from equimod.benchmarks.campaigns.campaign import Trial
from equimod.pipelines.durable import TEMPORARY_PREFIX, kept
from equimod.train.checkpoint import MODEL, OPTIMIZER, Checkpoint, CheckpointError, first_sound
from equimod.train.report import read_events
from equimod.train.run_folder import CHECKPOINTS
from equimod.train.signals import SIGTERM_EXIT

GONE = 5.0  # seconds, after which no process of an ended run is left
_NOWHERE = subprocess.DEVNULL


def kills(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """SIGKILL for a training that writes a checkpoint every step: every other time one of two ranks under torchrun,
    and then for the launcher as often as for a rank."""
    yield from _of_trainings(folder, seed, count, signal.SIGKILL)


def terminations(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """SIGTERM for a training that writes no checkpoint before its end, with one rank and with two in turn."""
    yield from _of_trainings(folder, seed, count, signal.SIGTERM)


@cache
def _undisturbed(ranks: int) -> tuple[TemporaryDirectory[str], float]:
    """A folder with images and the run that nothing ends, and the seconds that it takes; made once a process."""
    made = TemporaryDirectory()
    images = toys.tree(Path(made.name), 24)
    began = time.monotonic()
    toys.completed(_training(images, Path(made.name) / "run", ranks, 1))
    return made, time.monotonic() - began


def _training(images: Path, output: Path, ranks: int, checkpoint_every: int) -> list[str]:
    options = ("--epochs", "6", "--log.checkpoint-every", str(checkpoint_every), "--resume", "auto")
    return toys.train(images, output, *options, ranks=ranks)


def _of_trainings(folder: Path, seed: int, count: int, number: signal.Signals) -> Iterator[Trial]:
    left = count
    for run in itertools.count():  # one is ended several times before it is done, another not once
        ended = _Ended(number, 1 + run % 2, folder / "run", np.random.default_rng([seed, run]))
        trials = list(ended.until_done(left))
        if fault := ended.difference():
            trials[-1:] = [Trial("silently wrong", f"run {run} of {ended.ranks} ranks: {fault}")]
        yield from trials
        shutil.rmtree(ended.output)
        left -= len(trials)
        if left <= 0:
            return


@dataclass(frozen=True)
class _Ended:
    """A training that a signal ends at random moments, and that goes on until it is done."""

    number: signal.Signals
    ranks: int
    output: Path
    rng: np.random.Generator

    @property
    def command(self) -> list[str]:
        every = 1 if self.number is signal.SIGKILL else 1_000_000
        return _training(Path(_undisturbed(self.ranks)[0].name) / "tree", self.output, self.ranks, every)

    def until_done(self, most: int) -> Iterator[Trial]:
        """End it `most` times at most."""
        for _ in range(most):
            moment = float(self.rng.uniform(0, _undisturbed(self.ranks)[1]))
            with subprocess.Popen(self.command, stdout=_NOWHERE, stderr=subprocess.PIPE, text=True) as process:
                try:
                    said = process.communicate(timeout=moment)[1]
                except subprocess.TimeoutExpired:
                    yield self._end(process, f"{self.number.name} for {self.ranks} ranks after {moment:.2f} s")
                    continue
                finally:
                    process.kill()
            if process.returncode:
                yield Trial("not resumable", f"it ends by itself with {process.returncode}: {said.strip()[-300:]}")
            return
        try:
            toys.completed(self.command)
        except toys.ToyError as error:
            yield Trial("not resumable", str(error))

    def difference(self) -> str:
        """How the run that is done differs from the undisturbed one; empty where it does not."""
        undisturbed = Path(_undisturbed(self.ranks)[0].name) / "run"
        if _names(self.output) != _names(undisturbed):
            return f"it has other files: {sorted(_names(self.output) ^ _names(undisturbed))}"
        (ended, *_), (expected, *_) = kept(self.output / CHECKPOINTS), kept(undisturbed / CHECKPOINTS)
        if ended.name != expected.name:
            return f"it ends with {ended.name}"
        differing = [n for n in (MODEL, OPTIMIZER) if (ended / n).read_bytes() != (expected / n).read_bytes()]
        differing += ["the losses"] if _losses(self.output) != _losses(undisturbed) else []
        return f"other than undisturbed: {', '.join(differing)}" if differing else ""

    def _end(self, process: subprocess.Popen[str], what: str) -> Trial:
        """Send the signal to the running training, and see what is left of it."""
        ranks = [found for found in _of_run(self.output) if found != process.pid]
        hit = process.pid
        if ranks and self.rng.random() < 0.5:
            hit = ranks[int(self.rng.integers(len(ranks)))]
        with suppress(ProcessLookupError):
            os.kill(hit, self.number)
        if not _all_end(partial(_of_run, self.output), GONE):
            left = _of_run(self.output)
            for found in left:
                os.kill(found, signal.SIGKILL)
            return Trial("a process is left", f"{what}: {len(left)} of its processes are there after {GONE:.0f} s")
        said = process.communicate()[1]
        if self.ranks == 1 and process.returncode not in (0, SIGTERM_EXIT, -self.number):
            return Trial("another error", f"{what}: exit code {process.returncode}, {said.strip()[-300:]}")
        return _looked_at(what, self.output, self.number)


def _looked_at(what: str, output: Path, number: signal.Signals) -> Trial:
    skipped: list[str] = []
    checkpoints = output / CHECKPOINTS
    try:
        found = first_sound(checkpoints, lambda path: Checkpoint.open(path).check().path, skipped.append)
    except CheckpointError as error:
        return Trial("not resumable", f"{what}: {error}")
    if skipped:
        return Trial("not resumable", f"{what}: a checkpoint is damaged: {skipped[0]}")
    saved = int(found.name.removeprefix("step-")) if found else 0
    logged = max((step for step, _ in _losses(output)), default=0)
    most = 1 if number is signal.SIGKILL else 0
    if logged - saved > most:
        return Trial("steps lost", f"{what}: {logged - saved} steps are lost")
    when = "in its start" if not logged and not saved else "in training"
    return Trial(f"{when}, {'a step' if logged > saved else 'nothing'} lost")


def _of_run(output: Path) -> list[int]:
    """The processes that work for a run, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if os.fsencode(output) in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def _all_end(any_left: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any_left():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _losses(output: Path) -> list[tuple[int, float]]:
    metrics = output / "metrics.jsonl"
    events = read_events(metrics) if metrics.exists() else []
    return [(event["step"], event["loss"]) for event in events if event["event"] == "step"]


def _names(folder: Path) -> set[str]:
    """The names below a folder, without the numbers of checkpoints and of TensorBoard's files, one for each start."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {re.sub(r"step-\d+", "step", re.sub(r"tfevents\..*", "tfevents", name)) for name in names}


def conversion_kills(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """SIGKILL for a conversion with two workers, into shards and into a .beton in turn."""
    images = toys.tree(folder, 60)
    outputs = {"dali": folder / "undisturbed", "ffcv": folder / "undisturbed.beton"}
    seconds = {}
    for form, output in outputs.items():
        began = time.monotonic()
        toys.completed(toys.conversion(images, output, form))
        seconds[form] = time.monotonic() - began
    place = folder / "of trials"
    place.mkdir()
    for trial in range(count):
        form = list(outputs)[trial % 2]
        rng = np.random.default_rng([seed, trial])
        output = place / outputs[form].name
        moment = float(rng.uniform(0, seconds[form]))
        command = toys.conversion(images, output, form)
        with subprocess.Popen(command, stdout=_NOWHERE, stderr=_NOWHERE, start_new_session=True) as process:
            try:
                process.wait(moment)
                outcome = "done before"
            except subprocess.TimeoutExpired:
                process.kill()
                outcome = "gone on with"
        what = f"{form}, killed after {moment:.2f} s"
        if _all_end(partial(_is_there, process.pid), GONE):
            yield _gone_on_with(what, outcome, command, outputs[form], output)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            yield Trial("a process is left", f"{what}: a worker is there after {GONE:.0f} s")
        shutil.rmtree(place)
        place.mkdir()


def _is_there(group: int) -> bool:
    """Whether a group of processes has any."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _gone_on_with(what: str, outcome: str, command: list[str], expected: Path, output: Path) -> Trial:
    try:
        toys.completed(command)
    except toys.ToyError as error:
        return Trial("not resumable", f"{what}: {error}")
    if left := [path.name for path in output.parent.rglob(f"{TEMPORARY_PREFIX}*")]:
        return Trial("files are left", f"{what}: {left} is left")
    if _contents(output) != _contents(expected):
        return Trial("silently wrong", f"{what}: other bytes than of a conversion that nothing ended")
    if extra := [path.name for path in output.parent.iterdir() if path != output]:
        return Trial("files are left", f"{what}: {extra} is left")
    return Trial(outcome)


def _contents(path: Path) -> dict[str, bytes]:
    paths = path.rglob("*") if path.is_dir() else [path]
    return {str(found.relative_to(path)): found.read_bytes() for found in paths if found.is_file()}
