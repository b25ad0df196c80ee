"""The machine: what the other sections need, found out in the first seconds, and the limits they are held against."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from equimod.benchmarks.gpu_check.clock import copy_bytes_per_second, matmul_flops
from equimod.benchmarks.gpu_check.report import Finding, Job, demand, measured


def run(job: Job) -> Iterator[Finding]:
    """Compiler, Triton, the package and its compiled parts; then copy and matrix product."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    missing = ["a C compiler (apt-get install gcc)"] * (compiler is None)
    missing += ["Python.h (apt-get install python3-dev)"] * (not header)
    yield demand("torch.compile and Triton can compile", not missing, note="; ".join(f"missing: {m}" for m in missing))
    triton = version("triton") if find_spec("triton") else None
    yield demand("Triton is there", triton is not None or not job.full, note=triton or "not installed")
    yield _installed()
    yield from _compiled_parts()
    size, side = job.sized(2**31, 2**24), job.sized(8192, 512)
    yield measured("copy within the device, read and written", [copy_bytes_per_second(job.device, size) / 1e9], "GB/s")
    yield measured("bf16 matrix product", [matmul_flops(job.device, side) / 1e12], "TFLOP/s", f"{side} x {side}")
    if job.full:
        yield demand("bf16 is computed by the card", torch.cuda.is_bf16_supported(including_emulation=False))


def _installed() -> Finding:
    try:
        return demand("equimod is installed, which checkpoints ask for", True, note=version("equimod"))
    except PackageNotFoundError:
        return demand("equimod is installed, which checkpoints ask for", False, note="pip install it, with --no-deps")


def _compiled_parts() -> Iterator[Finding]:
    """The parts in C. Importing them raises OSError where a library is gone that they were linked with."""
    try:
        from equimod.pipelines.decode import LIBRARY, NO_LIBRARY
        from equimod.pipelines.resize import KERNEL, NO_KERNEL
    except OSError as error:
        yield demand("the compiled parts load", False, note=str(error))
        return
    resizes = KERNEL.instruction_sets[-1] if KERNEL else NO_KERNEL
    yield demand("resizing is compiled for this Python", KERNEL is not None, note=resizes)
    yield demand("decoding of regions is compiled", LIBRARY is not None, note="" if LIBRARY is not None else NO_LIBRARY)
