"""benchmarks/gpu.py on the CPU: a section finds what is broken, and one that breaks itself stops no other."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from equimod.benchmarks import gpu
from equimod.benchmarks.gpu_check import (
    backends,
    machine,
    numerics,
    operators,
    races,
    real_run,
    sections,
    steps,
    training,
    waits,
)
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured
from equimod.benchmarks.gpu_check.sections import SECTIONS, Section, run_section
from equimod.benchmarks.gpu_check.workload import state_of
from equimod.models import batchnorm, simclr
from equimod.models.losses import nt_xent
from equimod.pipelines import ops
from equimod.pipelines.backends import native_backend
from equimod.pipelines.build import Pipeline
from equimod.train import checkpoint
from equimod.train.grad_cache import GradCache

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(CPU, None, tmp_path, 600.0, time.monotonic())


def _failed(findings: Iterator[Finding]) -> set[str]:
    return {finding.name for finding in findings if finding.met is False}


@pytest.mark.ci
def test_every_section_runs_and_finds_all_as_it_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    sections = [section for section in SECTIONS if section.name != "backends"]  # which another test runs, sound too
    only = ["--only", *(section.name for section in sections)]
    assert gpu.main(["--device", "cpu", "--minutes", "20", *only]) == 0
    shown = capsys.readouterr().out
    for section in sections:
        assert f"{section.name}: {section.title}" in shown
    assert "left out" not in shown


def test_the_machine_without_compiled_parts_and_installation_is_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from equimod.pipelines import decode, resize

    def not_there(name: str) -> str:
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(decode, "LIBRARY", None)
    monkeypatch.setattr(resize, "KERNEL", None)
    monkeypatch.setattr(machine, "version", not_there)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert _failed(machine.run(job)) == {
        "torch.compile and Triton can compile",
        "equimod is installed, which checkpoints ask for",
        "resizing is compiled for this Python",
        "decoding of regions is compiled",
    }


def test_a_library_that_is_gone_is_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def gone(name: str, *arguments: Any) -> Any:
        if name == "equimod.pipelines.decode":
            raise OSError("libjpeg.so.62: cannot open shared object file")
        return whole(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", gone)
    (finding,) = machine._compiled_parts()
    assert finding.met is False
    assert "libjpeg.so.62" in finding.note


def _depends_on_the_batch(images: Tensor, *rest: Any) -> Tensor:
    return _APPLY(images, *rest).add_(0.001 * len(images))


_APPLY = ops.apply


def test_operators_that_depend_on_the_batch_are_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "apply", _depends_on_the_batch)
    assert len(_failed(operators.agreement(job))) == 6


def _waiting(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    loss = nt_xent(z_i, z_j, temperature)
    return loss if loss.item() < 10 else loss / 2


def _uploading(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    return nt_xent(z_i, z_j, temperature) * z_i.new_tensor(1.0) * torch.ones(()).to(z_i.device)


@pytest.mark.parametrize(("fault", "count"), [(_waiting, 1), (_uploading, 2)])
def test_a_step_that_waits_is_found(fault: Any, count: int, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = waits._step(job, "simclr", False, waits.META)
    assert finding.met
    calls = 0

    def second_time(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return (fault if calls > 1 else nt_xent)(*arguments)

    monkeypatch.setattr(simclr, "nt_xent", second_time)
    finding = waits._step(job, "simclr", False, waits.META)
    assert finding.met is False
    assert finding.value is not None
    assert finding.value.median >= count


def test_batch_norm_over_ranks_that_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batchnorm.SyncBatchNorm.forward

    def waiting(norm: Any, input: Tensor) -> Tensor:
        assert input.mean().item() < 10
        return whole(norm, input)

    monkeypatch.setattr(batchnorm.SyncBatchNorm, "forward", waiting)
    found = list(waits._norms(waits.META))
    assert _failed(iter(found)) == {finding.name for finding in found}
    assert all("item() cannot be called on meta tensors" in finding.note for finding in found)


def test_weights_that_are_not_finite_are_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(state: Any, batch: Any) -> None:
        next(state.model.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(steps, "step", poisoned)
    assert _failed(steps._in_detail(job, steps.config_of(job, "simclr", True))) == {"weights stay finite"}


def test_training_that_waits_for_its_operators_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(images: Tensor, *rest: Any) -> Tensor:
        time.sleep(0.5)
        return _APPLY(images, *rest)

    monkeypatch.setattr(ops, "apply", slow)
    found = {finding.name: finding for finding in training.run(job)}
    waited = found["data wait"]
    assert waited.value is not None
    assert waited.value.median > 0.05
    assert "prefetch thread is the limit" in waited.note


def test_memory_beyond_its_prediction_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = training.peak_bytes
    monkeypatch.setattr(training, "peak_bytes", lambda *arguments: predicted(*arguments) // 2)
    assert _failed(training.memory(job)) == {"peak allocated in training"}


def test_batches_in_memory_that_is_used_again_are_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, used = torch.empty, {}

    def again(*shape: Any, **options: Any) -> Tensor:
        if shape and isinstance(shape[0], tuple) and len(shape[0]) == 4:
            pool = used.setdefault(shape, cycle([empty(*shape, **options) for _ in range(3)]))
            return next(pool)
        return empty(*shape, **options)

    monkeypatch.setattr(native_backend.torch, "empty", again)
    assert any("bytes as on the CPU" in name or "same bits" in name for name in _failed(races._content(job)))


def test_memory_and_events_that_pile_up_are_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        pass

    kept: list[Any] = []
    whole = Pipeline._operated

    def leaking(pipeline: Pipeline, *arguments: Any) -> Any:
        out = whole(pipeline, *arguments)
        kept.extend((Event(), out))
        return out

    monkeypatch.setattr(races.torch.cuda, "Event", Event)
    monkeypatch.setattr(Pipeline, "_operated", leaking)
    assert len(_failed(races._memory(job))) == 2


def test_half_precision_in_place_of_float32_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.matmul

    def half(a: Tensor, b: Tensor) -> Tensor:
        return whole(a, b) if a.dtype == torch.float64 else whole(a.bfloat16(), b.bfloat16()).float()

    monkeypatch.setattr(numerics.torch, "matmul", half)
    assert _failed(numerics._float32(job, numerics._config(job))) == {"fp32: matrix products are float32, not TF32"}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_trainer_switches_tf32_off_in_every_precision(precision: Any, job: Job) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    state_of(job, replace(numerics._config(job), precision=precision))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_gradient_that_leaves_out_a_part_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GradCache._chunk
    monkeypatch.setattr(GradCache, "_chunk", lambda cache, images, number: whole(cache, images, 0))
    assert numerics._in_parts(job, numerics._config(job)).met is False


def test_a_step_on_an_infinite_gradient_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", lambda scaler, optimizer, *_: optimizer.step())
    found = _failed(numerics._scaler(job, numerics._config(job)))
    assert "fp16: an infinite gradient changes no weight and halves the scale" in found


def test_a_resume_without_momenta_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "kept_tensors", lambda model, optimizer: iter(()))
    assert numerics._resumed(job, numerics._config(job)).met is False


def test_a_backend_with_other_pixels_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "PACKAGES", {"native": "torch"})
    assert not _failed(backends.run(job))
    monkeypatch.setattr(native_backend, "crop_specs", lambda boxes, *rest: _CROP_SPECS(boxes - [0, 0, 4, 0], *rest))
    assert _failed(backends.run(job)) == {"native: pixels as torchvision's"}


_CROP_SPECS = native_backend.crop_specs


def test_a_real_run_that_fails_is_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_run, "train", lambda arguments: 1)
    assert _failed(real_run.run(job)) == {
        "SimCLR: 1 epochs of training ends well",
        "SimCLR + EquiMod: 1 epochs of training ends well",
    }


def _section(name: str) -> Section:
    return Section(name, "on purpose", f"faulty_sections:{name}", 1, 60)


def test_a_section_that_raises_says_so_in_a_line_and_keeps_what_it_found() -> None:
    outcome = run_section(_section("raises"), "cpu", None, 60.0)
    assert [finding.name for finding in outcome.findings] == ["before"]
    assert outcome.fault == "ValueError: the second line"
    assert "Traceback" in outcome.details


def test_a_section_whose_process_dies_is_told_with_its_last_words() -> None:
    outcome = run_section(_section("dies"), "cpu", None, 60.0)
    assert outcome.fault == "its process ended with signal 11 (SIGSEGV)"
    assert outcome.details.strip() == "last words"
    assert len(outcome.findings) == 1


def test_a_section_out_of_time_is_ended_with_its_processes() -> None:
    outcome = run_section(_section("hangs"), "cpu", None, 10.0)
    assert outcome.fault == "not done after 10 s"
    (finding,) = outcome.findings
    assert finding.value is not None
    status = Path(f"/proc/{finding.value.median:.0f}/stat")
    assert not status.exists() or ") Z " in status.read_text()  # gone, or nobody has asked for its exit code yet


def test_a_section_that_has_said_all_and_does_not_end_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "EXIT_SECONDS", 0.5)
    outcome = run_section(_section("lingers"), "cpu", None, 60.0)
    assert (outcome.fault, len(outcome.findings)) == ("", 1)
    assert outcome.seconds < 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "steps"], "--only steps: no such section; give some of machine, operators"),
        (["--minutes", "0"], "--minutes 0: give more than 0"),
        (["--device", "cpu", "--output", "a.json"], "--device cpu gives no result to store"),
        (["--output", "a.txt"], "does not end in .json"),
        (["--output", "nowhere/a.json"], "its folder does not exist"),
        (["--data", "nowhere"], "--data nowhere is no folder"),
        ([], "torch sees no GPU"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_what_does_not_fit_into_the_minutes_is_said_and_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main(["--minutes", "0.1", "--only", "step", "run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left out") == 2
    assert "takes about 75 s, and 6 s are left" in shown


def test_a_result_is_kept_after_every_section_with_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "gpu.json"
    told: list[int] = []

    def of_section(section: Section, *_: Any) -> Any:
        told.append(len(json.loads(output.read_text())["sections"]) if output.exists() else 0)
        outcome = gpu.Outcome(section)
        outcome.findings.append(measured("simclr, bf16", [1900.0, 2000.0, 2100.0], "encoder images/s"))
        outcome.findings.append(demand("bits", section.name != "waits"))
        return outcome

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "run_section", of_section)
    assert gpu.main(["--only", "machine", "waits", "--output", str(output)]) == 1
    result = json.loads(output.read_text())
    assert told == [0, 1]
    assert [section["name"] for section in result["sections"]] == ["machine", "waits"]
    assert result["sections"][0]["findings"][0]["value"] == {"median": 2000.0, "low": 1900.0, "high": 2100.0}
    assert {"commit", "gpu", "versions", "machine", "command"} <= result.keys()
    assert output.with_suffix(".png").stat().st_size > 1000
