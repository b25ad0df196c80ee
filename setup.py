"""Packages and compiled parts of equimod: every top-level folder becomes a subpackage of one import name.

The folders live at the top of the checkout, but nothing called ``train`` or ``models`` may land in
site-packages: ``package_dir`` maps each of them under the namespace package ``equimod``. All else is in pyproject.toml.
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
    packages=[f"equimod.{name}" for name in PACKAGES],
    ext_modules=[RESAMPLE, DECODE],
    package_dir={f"equimod.{folder}": folder for folder in FOLDERS},
    package_data={"equimod.train": ["recipes/*.yaml", "launch/*.sbatch", "html_report/*.jinja"]},
)
