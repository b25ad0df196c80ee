"""The sections of the GPU check, the most telling first, and how one runs in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from equimod.benchmarks.gpu_check.report import Finding, Job
from equimod.pipelines.workers import end_with_parent

OUTPUT = "output.txt"  # what a section prints
EXIT_SECONDS = 10.0  # that a process has to end in
DETAILS = 4000  # characters of it, or of a traceback, that are kept


@dataclass(frozen=True)
class Section:
    """What is looked at together. Times are for one H100."""

    name: str
    title: str
    function: str  # a module, relative to this package, and a function of it
    seconds: int  # that it should take, with the start of its process
    limit: int  # seconds after which it is ended


SECTIONS = (
    Section("machine", "compilers, the compiled parts, the limits of this card", ".machine:run", 10, 60),
    Section("operators", "operators against the CPU", ".operators:agreement", 35, 90),
    Section("waits", "hidden waits for the device", ".waits:run", 50, 120),
    Section("speed", "what the operators cost", ".operators:speed", 25, 90),
    Section("step", "the step alone", ".steps:run", 75, 150),
    Section("training", "training through the pipeline", ".training:run", 60, 120),
    Section("memory", "memory against its prediction", ".training:memory", 40, 90),
    Section("races", "batches beside a heavy consumer", ".races:run", 30, 90),
    Section("numerics", "precision, gradients in parts, resume", ".numerics:run", 30, 90),
    Section("backends", "the loader backends that are installed", ".backends:run", 15, 90),
    Section("compiled_step", "the step by torch.compile and in CUDA graphs", ".steps:compiled", 120, 240),
    Section("run", "CIFAR-10, without and with EquiMod", ".real_run:run", 90, 3600),
)
NAMES = tuple(section.name for section in SECTIONS)


@dataclass
class Outcome:
    """What a section found until it ended."""

    section: Section
    findings: list[Finding] = field(default_factory=list)
    fault: str = ""  # one line: why it ended early
    details: str = ""  # the traceback, or the last that the process printed
    left_out: str = ""  # one line: why it was not run
    seconds: float = 0.0


def run_section(section: Section, device: str, data: Path | None, seconds: float) -> Outcome:
    """Run a section in a process of its own, ended after `seconds`; an error of any kind there is its outcome.

    What it prints is dropped: a section answers with findings, and those that it had are kept.
    """
    outcome, began = Outcome(section), time.monotonic()
    context = multiprocessing.get_context("spawn")
    answers, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix=f"equimod-{section.name}-") as scratch:
        job = Job(torch.device(f"{device}:0" if device == "cuda" else device), data, Path(scratch), seconds, began)
        (job.scratch / OUTPUT).touch()  # a process may die before it gets there
        process = context.Process(target=_answer, args=(section.function, job, sender), name=section.name)
        process.start()
        sender.close()
        try:
            if not _collect(answers, outcome, began + seconds):
                outcome.fault = f"not done after {seconds:.0f} s"
            else:
                process.join(EXIT_SECONDS)  # all is said; one that hangs at its exit has lost nothing
                if process.exitcode and not outcome.fault:
                    outcome.fault = f"its process ended with {_exit(process.exitcode)}"
        finally:
            if process.pid is not None and process.exitcode is None:
                _kill_group(process.pid)
            process.join(EXIT_SECONDS)  # a driver may hold on to it for good
        if outcome.fault and not outcome.details:
            outcome.details = (job.scratch / OUTPUT).read_text(errors="replace")[-DETAILS:]
    outcome.seconds = time.monotonic() - began
    return outcome


def _collect(answers: Connection, outcome: Outcome, until: float) -> bool:
    """Take what the section says. Returns whether it closed its end before time was over."""
    while answers.poll(max(0.0, until - time.monotonic())):
        try:
            answer = answers.recv()
        except EOFError:
            return True
        if isinstance(answer, Finding):
            outcome.findings.append(answer)
        else:
            outcome.fault, outcome.details = answer
    return False


def _answer(function: str, job: Job, answers: Connection) -> None:
    """The process of a section."""
    os.setpgid(0, 0)  # so that its own workers end with it
    end_with_parent()
    with (job.scratch / OUTPUT).open("w") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    module, _, name = function.partition(":")
    try:
        for finding in getattr(import_module(module, __package__), name)(job):
            answers.send(finding)
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0]
        answers.send((f"{type(error).__name__}: {first}", traceback.format_exc()[-DETAILS:]))
    answers.close()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet, or is gone
        os.kill(pid, signal.SIGKILL)


def _exit(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
