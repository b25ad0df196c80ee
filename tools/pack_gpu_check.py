"""Pack what a machine with a GPU and no network lacks: `python tools/pack_gpu_check.py OUT`.

OUT holds this package's source, the wheels and the JPEG library that it needs beside PyTorch, real images where
$EQUIMOD_DATA names a folder with imagenet_sample.zip and cifar10.zip, and run.sh, which installs all that beside itself
and runs benchmarks/gpu.py. The machine needs Python, pip, torch, torchvision, numpy, Pillow, PyYAML, safetensors,
tensorboard and matplotlib, and a C compiler.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Literal

import tyro

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.cores import available_cores
from equimod.pipelines.durable import durable_dir
from equimod.pipelines.errors import EquimodError, UsageError
from equimod.pipelines.progress import reading, track
from equimod.train.command import run_command
from equimod.train.evaluation.provenance import provenance

CHECKOUT = Path(__file__).parent.parent
SOURCE = ("setup.py", "pyproject.toml", "README.md", "LICENSE")  # beside the packages
WHEELS = (
    *("tyro", "docstring-parser", "typeguard", "shtab", "typing-extensions"),
    *("rich", "markdown-it-py", "mdurl", "pygments"),
    *("simplejpeg", "msgspec", "setuptools"),
)
HEADERS = ("jpeglib.h", "jconfig.h", "jmorecfg.h", "jerror.h")
NEWEST_GLIBC = 39  # 2.N of the newest manylinux tag that is asked for
MIB = 2**20
LIMIT = 60 * MIB
DATA = "data.tar.gz"


class PackError(EquimodError):
    """What a pack needs is not here: the message names it and the remedy, in one line."""


@dataclass(frozen=True)
class ImageSet:
    """Real images that go along: an archive of class folders, and how many of them."""

    name: str
    archive: str
    folder: str
    samples: int


IMAGES = (
    ImageSet("imagenet", "imagenet_sample.zip", "", 64),
    ImageSet("cifar10-train", "cifar10.zip", "train/", 50_000),
    ImageSet("cifar10-test", "cifar10.zip", "test/", 2_000),
)


@dataclass(frozen=True)
class Arguments:
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to make."""
    python: str = "3.12"
    """Version of CPython on the machine with the GPU."""
    machine: Literal["x86_64", "aarch64"] = "x86_64"
    """Its processor; this machine's must be the same, whose JPEG library is taken."""
    data: Path | None = Path(os.environ["EQUIMOD_DATA"]) if os.environ.get("EQUIMOD_DATA") else None
    """Folder with the archives of real images, by default $EQUIMOD_DATA; none: the check draws its images."""


def pack(arguments: Arguments, images: tuple[ImageSet, ...] = IMAGES) -> None:
    """Make the folder, which appears when it is complete. Raises PackError, RecordsError, OSError."""
    if not (CHECKOUT / "setup.py").is_file():
        raise PackError("the source is not here; clone the repository and run tools/pack_gpu_check.py of the clone")
    script = _script(arguments)  # asks whether the checkout has changes, before a folder of this is in it
    with durable_dir(arguments.output) as folder:
        _say("source")
        _copy_source(folder / "source")
        _say(f"wheels for CPython {arguments.python} on {arguments.machine}")
        _download(folder / "wheels", arguments)
        _say("JPEG library")
        _copy_jpeg(folder / "libjpeg", arguments.machine)
        if arguments.data is None:
            _say("no real images: EQUIMOD_DATA is not set, so the check draws its own")
        else:
            _pack_images(arguments.data, images, folder / DATA)
        (folder / "run.sh").write_text(script, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > LIMIT:
            raise PackError(f"the pack has {size / MIB:.1f} MiB, more than the {LIMIT // MIB} that may be carried")
    print(f"{arguments.output}: {size / MIB:.1f} MiB; on the machine with the GPU run: sh {arguments.output}/run.sh")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _copy_source(folder: Path) -> None:
    """The files that the package is built from."""
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "results", "*.egg-info")
    for package in CHECKOUT.glob("*/__init__.py"):
        shutil.copytree(package.parent, folder / package.parent.name, ignore=ignored)
    for name in SOURCE:
        shutil.copy(CHECKOUT / name, folder)


def _download(folder: Path, arguments: Arguments) -> None:
    """The wheels, of the versions that are installed here where they are."""
    glibcs = range(NEWEST_GLIBC, 16, -1)
    tags = [f"manylinux_2_{minor}_{arguments.machine}" for minor in glibcs] + [f"manylinux2014_{arguments.machine}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", arguments.python, "--dest", str(folder)]
    command += chain.from_iterable(("--platform", tag) for tag in tags)
    done = subprocess.run([*command, *map(_pinned, WHEELS)], check=False, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise PackError(f"pip cannot download the wheels: {reasons[-1].removeprefix('ERROR: ')}")


def _pinned(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name


def _copy_jpeg(folder: Path, machine: str) -> None:
    """libjpeg-turbo's header and library, as this machine's compiler finds them."""
    if platform.machine() != machine:
        raise PackError(f"--machine {machine}: this machine is {platform.machine()}; make the pack on one like that")
    program = "#include <stdio.h>\n#include <jpeglib.h>\n#include <jerror.h>\n"
    try:
        found = subprocess.run(["cc", "-M", "-x", "c", "-"], input=program, check=True, capture_output=True, text=True)
        asked = subprocess.run(["cc", "-print-file-name=libjpeg.so"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackError("no C compiler with libjpeg-turbo's header; apt-get install gcc libjpeg-dev") from error
    (folder / "include").mkdir(parents=True)
    (folder / "lib").mkdir()
    headers = [Path(word) for word in found.stdout.split() if Path(word).name in HEADERS]
    library = Path(asked.stdout.strip()).resolve()
    if len(headers) != len(HEADERS) or not library.is_file():
        raise PackError("libjpeg-turbo's header or library is missing; apt-get install libjpeg-dev")
    for header in headers:
        shutil.copy(header, folder / "include")
    # The name that it is linked with: libjpeg.so.62 of libjpeg.so.62.3.0.
    shutil.copy(library, folder / "lib" / ".".join(library.name.split(".")[:3]))


def _pack_images(data: Path, images: tuple[ImageSet, ...], path: Path) -> None:
    """Records of the images, compressed: their pages of 8 MiB are filled up with zeros."""
    with tempfile.TemporaryDirectory(prefix="equimod-pack-") as scratch, tarfile.open(path, "w:gz") as packed:
        for wanted in images:
            _say(f"images: {wanted.name}")
            records = Path(scratch) / f"{wanted.name}.beton"
            _convert(data / wanted.archive, wanted, records)
            with records.open("rb") as file:
                member = packed.gettarinfo(arcname=f"data/{records.name}", fileobj=file)
                with reading(file, member.size, "packing") as shown:
                    packed.addfile(member, shown)


def _convert(archive: Path, wanted: ImageSet, path: Path) -> None:
    """Write so many images of `archive`, as many of each class, as records."""
    try:
        with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory(prefix="equimod-pack-") as tree:
            names = _chosen(opened.namelist(), wanted)
            for name in track(names, len(names), "unpacking", "images"):
                opened.extract(name, tree)
            root = Path(tree) / wanted.folder
            convert_to_beton(open_source(root), path, ConversionSettings(workers=available_cores()))
    except zipfile.BadZipFile as error:
        raise PackError(f"{archive} is no zip archive ({error}); give another --data") from error


def _chosen(names: list[str], wanted: ImageSet) -> list[str]:
    """The first images of every class below the folder, in turn, until there are enough."""
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if name.startswith(wanted.folder) and not name.endswith("/"):
            classes[name.rpartition("/")[0]].append(name)
    turns: Iterator[str | None] = chain.from_iterable(zip_longest(*classes.values()))
    return [name for name in turns if name is not None][: wanted.samples]


def _script(arguments: Arguments) -> str:
    commit = provenance("", [])["commit"]
    known = f"{commit['sha']}{'+' * commit['dirty']}" if commit else ""
    return f"""#!/bin/sh
# Install equimod and what it needs into the folder `site` beside this file, from this folder alone, then run the check.
# Arguments go to benchmarks/gpu.py; PYTHON names another Python than python3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${{PYTHON:-python3}}
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "{arguments.python}" ]; then
  echo "error: this pack is for Python {arguments.python}, $python is $found; make one with --python $found" >&2
  exit 2
fi
export PYTHONPATH="$here/site${{PYTHONPATH:+:$PYTHONPATH}}"
if [ ! -e "$here/site/installed" ]; then
  rm -rf "$here/site"
  offline="--quiet --no-index --no-deps --no-compile --upgrade"
  "$python" -m pip install $offline --target "$here/site" "$here"/wheels/*.whl
  jpeg="$here/libjpeg"
  for library in "$jpeg"/lib/libjpeg.so.*; do ln -sf "$(basename "$library")" "$jpeg/lib/libjpeg.so"; done
  CPATH="$jpeg/include" LIBRARY_PATH="$jpeg/lib" LDFLAGS='-Wl,-rpath,$ORIGIN/../../../libjpeg/lib' \\
    "$python" -m pip install $offline --no-build-isolation --target "$here/site" "$here/source"
  touch "$here/site/installed"
fi
if [ -e "$here/{DATA}" ] && [ ! -d "$here/data" ]; then tar -xzf "$here/{DATA}" -C "$here"; fi
if [ -d "$here/data" ]; then set -- --data "$here/data" "$@"; fi
EQUIMOD_COMMIT={known} exec "$python" -m equimod.benchmarks.gpu "$@"
"""


def main() -> int:
    """Run the command line. Returns the exit code."""

    def run() -> None:
        arguments = tyro.cli(Arguments, description=__doc__)
        for archive in {wanted.archive: None for wanted in IMAGES} if arguments.data is not None else ():
            if arguments.data is not None and not (arguments.data / archive).is_file():
                raise UsageError(
                    f"--data {arguments.data} holds no {archive}; give another folder, or unset EQUIMOD_DATA"
                )
        pack(arguments)

    return run_command(run, again="run the same command to start over")


if __name__ == "__main__":
    sys.exit(main())
