"""Say what works on this machine and what mends the rest: `equimod doctor`.

Exits with 0 where training can run, with 1 where it cannot.
"""

from __future__ import annotations

import importlib
import io
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import tyro

from equimod.pipelines.cores import available_cores
from equimod.pipelines.errors import UsageError
from equimod.train.command import run_command

APT = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++"
MEASURED_SECONDS = 1.0


@dataclass(frozen=True)
class Arguments:
    model_rate: float = 1000
    """Images a second that the model takes on one GPU; the cores it needs are worked out for that."""


@dataclass(frozen=True)
class Diagnosis:
    """A line of the answer."""

    name: str
    found: str | None  # None where it is missing or broken
    remedy: str = ""
    needed: bool = False  # to train at all

    def __str__(self) -> str:
        state = "ok" if self.found is not None else "missing" if not self.needed else "BROKEN"
        return f"{self.name:<12}{state:<9}{self.found if self.found is not None else self.remedy}"


def _check(name: str, remedy: str, look: Callable[[], str], *, needed: bool = False) -> Diagnosis:
    """What `look` says; whatever it raises means that the thing does not work."""
    try:
        return Diagnosis(name, look())
    except Exception as error:  # a broken extension may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        return Diagnosis(name, None, f"{reason}; {remedy}", needed)


def _version(module: str) -> str:
    found = importlib.import_module(module)
    return str(getattr(found, "__version__", "installed"))


def _torch() -> str:
    import torch

    torch.ones(2) @ torch.ones(2)
    return f"{torch.__version__}, built for CUDA {torch.version.cuda}" if torch.version.cuda else torch.__version__


def _resizing() -> str:
    from equimod.pipelines.resize import KERNEL

    if KERNEL is None:
        raise RuntimeError("not compiled, so torch does it, more slowly")
    return f"compiled, with {KERNEL.instruction_sets[-1]}"


def _regions() -> str:
    from equimod.pipelines.decode import LIBRARY

    if LIBRARY is None:
        raise RuntimeError("not compiled, so images are decoded whole")
    return "compiled, decodes the region that crops need, with libjpeg-turbo"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU, so training runs on the CPU")
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return ", ".join(f"{one.name} ({one.total_memory / 2**30:.0f} GiB)" for one in properties)


def _nccl() -> str:
    import torch
    import torch.distributed

    if not torch.distributed.is_nccl_available():
        raise RuntimeError("this torch has none, so several GPUs cannot train together")
    return ".".join(map(str, torch.cuda.nccl.version()))


def _ffcv() -> str:
    from equimod.pipelines.backends import BACKENDS

    BACKENDS["ffcv"]()
    return _version("ffcv")


def _apex() -> str:
    importlib.import_module("apex.optimizers").FusedSGD  # noqa: B018
    importlib.import_module("apex.contrib.cudnn_gbn")
    return "FusedSGD, cudnn_gbn"


def _compiler() -> str:
    if missing := [name for name in ("g++", "pkg-config") if shutil.which(name) is None]:
        raise RuntimeError(f"no {' and no '.join(missing)}")
    for library in ("opencv4", "libturbojpeg"):
        if subprocess.run(["pkg-config", "--exists", library], check=False).returncode:
            raise RuntimeError(f"no headers of {library}")
    return "g++, pkg-config, OpenCV and libjpeg-turbo headers, which ffcv is compiled with"


def loading_ms() -> float:
    """CPU milliseconds on one thread to decode a drawn JPEG of 500x375 pixels and make x and two crops of it."""
    import numpy as np
    import torch
    from PIL import Image

    from equimod.pipelines.decode import RegionDecoder, decode
    from equimod.pipelines.policy import POLICIES
    from equimod.pipelines.resize import CropResizer, center_crop_specs, crop_specs, regions_of_interest

    noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    policy, images = POLICIES["simclr_imagenet"], 0
    boxes, sizes = np.array([[60.0, 40.0, 330.0, 250.0]]), np.array([[500, 375]], dtype=np.int32)
    crops = [crop_specs(boxes, view.crop.size, view.crop.interpolation) for view in policy.views]
    specs = np.concatenate([center_crop_specs(sizes, sizes, policy.x), *crops])
    targets = [np.empty((1, policy.size, policy.size, 3), dtype=np.uint8) for _ in specs]
    resize, decode_region = CropResizer(specs[None], targets), RegionDecoder()
    region = tuple(regions_of_interest(specs[None], sizes)[0].tolist())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start, cpu = time.monotonic(), time.process_time()
        while images < 8 or time.monotonic() - start < MEASURED_SECONDS:
            pixels = decode_region(buffer.getvalue(), (500, 375), region)
            resize(0, decode(buffer.getvalue()) if pixels is None else pixels)
            images += 1
        return 1e3 * (time.process_time() - cpu) / images
    finally:
        torch.set_num_threads(threads)


def findings(model_rate: float) -> list[Diagnosis]:
    """Everything that is looked at, in order."""

    def cores() -> str:
        needed = model_rate * loading_ms() / 1e3
        return (
            f"{available_cores()} here; a model that takes {model_rate:,.0f} images/s keeps {needed:.1f} of them busy "
            "with the native loader (a drawn JPEG of 500x375 pixels, measured now)"
        )

    reinstall = "pip install --force-reinstall simplejpeg"
    apex = "build NVIDIA's from source; the apex on PyPI is another package"
    return [
        Diagnosis("python", platform.python_version()),
        _check("torch", "pip install torch torchvision", _torch, needed=True),
        _check("decoder", reinstall, lambda: f"simplejpeg {_version('simplejpeg')}", needed=True),
        _check("regions", "apt-get install libjpeg-dev g++, then pip install equimod once more", _regions),
        _check("resizing", "apt-get install g++, then pip install equimod once more", _resizing),
        _check("cores", reinstall, cores, needed=True),
        _check("gpu", "install a driver and a torch built for it, if there is one", _gpu),
        _check("nccl", "install a torch built for CUDA", _nccl),
        _check("dali", "pip install 'equimod[dali]'", lambda: _version("nvidia.dali")),
        _check("ffcv", "pip install --force-reinstall --no-deps ffcv==1.0.2", _ffcv),
        _check("compiler", APT, _compiler),
        _check("scipy", "pip install 'equimod[imagenet]'", lambda: _version("scipy")),
        _check("kornia", "pip install 'equimod[kornia]'", lambda: _version("kornia")),
        _check("timm", "pip install 'equimod[timm]'", lambda: _version("timm")),
        _check("apex", apex, _apex),
    ]


def main() -> int:
    """Run the command line. Returns the exit code: 0 where training can run, 1 where it cannot."""

    def run() -> int:
        arguments = tyro.cli(Arguments, description=__doc__)
        if arguments.model_rate <= 0:
            raise UsageError(f"--model-rate {arguments.model_rate} is no rate; give more than 0")
        found = findings(arguments.model_rate)
        print("\n".join(map(str, found)))
        return int(any(finding.needed and finding.found is None for finding in found))

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
