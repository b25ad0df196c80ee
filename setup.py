"""Packaging of equimod: every top-level folder becomes a subpackage of one import name.

The folders live at the top of the checkout, but nothing called ``train`` or ``models`` may land in
site-packages: ``package_dir`` maps each of them under the namespace package ``equimod``.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

FOLDERS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py"))
PACKAGES = [name for folder in FOLDERS for name in find_packages(include=[folder, f"{folder}.*"])]

# Resizes for the native backend. Optional: without a compiler torch does it, more slowly.
RESAMPLE = Extension(
    "equimod.pipelines._resample",
    sources=[f"pipelines/native/{name}.c" for name in ("resample", "resample_x86", "resample_neon")],
    depends=["pipelines/native/resample.h"],
    extra_compile_args=["-O3", "-ffp-contract=off", "-fvisibility=hidden"],
    libraries=["m"],
    optional=True,
)
# Decodes the region of a JPEG that its crops need. Optional: without libjpeg-turbo's header simplejpeg decodes all.
DECODE = Extension(
    "equimod.pipelines._decode",
    sources=["pipelines/native/decode.c"],
    extra_compile_args=["-O3", "-fvisibility=hidden"],
    libraries=["jpeg"],
    optional=True,
)

setup(
    name="equimod",
    version="0.1.0",
    description="Self-supervised vision training that hands every view over with its exact augmentation parameters",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[f"equimod.{name}" for name in PACKAGES],
    ext_modules=[RESAMPLE, DECODE],
    package_dir={f"equimod.{folder}": folder for folder in FOLDERS},
    package_data={"equimod.train": ["recipes/*.yaml", "launch/*.sbatch"]},
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "numpy>=2.0",
        "simplejpeg>=1.8",  # libjpeg-turbo into numpy, GIL released; scales over threads
        "pillow>=11",  # everything that is not a plain JPEG, and the drawing of the embedded data set
        "pyyaml>=6",  # recipes
        "tyro>=1.0",  # command lines from typed dataclasses, with hints at misspelt options
        "rich>=14",  # progress bars
        "safetensors>=0.6",  # checkpoints without pickle
        "tensorboard>=2.19",
        "matplotlib>=3.9",  # the figures of evaluate.py and the benchmarks
    ],
    extras_require={
        "dali": ["nvidia-dali-cuda130>=2.4"],
        # Compiled on installation; needs libopencv-dev libturbojpeg0-dev pkg-config g++ of the system.
        "ffcv": ["ffcv==1.0.2", "numba>=0.68"],
        "imagenet": ["scipy>=1.15"],  # the class table of ImageNet's devkit is a MATLAB file
        "kornia": ["kornia>=0.8"],  # a peer to measure against
        "dev": [
            "build",
            "mypy>=2.4",
            "psutil>=7",
            "pytest>=9",
            "pytest-xdist>=3.8",  # half of the tests' time is one process that waits for another
            "ruff>=0.17",
            "scipy>=1.15",
            "setuptools>=80",
            "types-PyYAML",
            "wheel",
        ],
    },
)
