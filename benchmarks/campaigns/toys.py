"""Small images, records and runs for campaigns to damage and to interrupt."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.errors import EquimodError

CHECKOUT = Path(__file__).parents[2]
SETTINGS = ConversionSettings(workers=1, shard_size=4)
_TRAIN = ["--method", "simclr", "--equimod", "--dataset", "shapes", "--batch-size", "8", "--system.workers", "1"]
_TRAIN += ["--encoder.arch", "resnet10", "--encoder.width", "8", "--equivariance.projector", "16", "8"]
_TRAIN += ["--equivariance.embedding", "8", "--simclr.hidden", "16", "--simclr.dim", "8", "--optim.warmup-epochs", "1"]
_TRAIN += ["--log.every", "1", "--system.device", "cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]


class ToyError(EquimodError):
    """A command that a campaign needs to succeed has failed: the message holds what it said last."""


def tree(folder: Path, count: int = 6) -> Path:
    """A folder of `count` small images of smooth colours in two classes, all JPEGs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "tree" / f"class {number % 2}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((20 + number % 8, 24)).save(path, quality=90)
    return folder / "tree"


def shards(folder: Path) -> Path:
    """`tree` as shards."""
    convert(tree(folder), folder / "tar", SETTINGS)
    return folder / "tar"


def records(folder: Path) -> dict[str, Path]:
    """`tree` as shards, and as .beton files of JPEGs and of pixels."""
    paths = {"tar": shards(folder), "beton": folder / "jpeg.beton", "raw": folder / "raw.beton"}
    for name in ("beton", "raw"):
        settings = replace(SETTINGS, raw=name == "raw")
        convert_to_beton(open_source(folder / "tree"), paths[name], settings)
    return paths


def train(images: Path, output: Path, *options: str, ranks: int = 1) -> list[str]:
    """The command of a small training of three steps an epoch on 24 images."""
    launcher = TORCHRUN if ranks > 1 else []
    script = str(CHECKOUT / "train" / "main.py")
    return [sys.executable, *launcher, script, *_TRAIN, "--data", str(images), "--output", str(output), *options]


def conversion(images: Path, output: Path, form: str) -> list[str]:
    """The command of a conversion by two workers into records of the format `form`."""
    script = str(CHECKOUT / "tools" / "convert_imagenet.py")
    return [sys.executable, script, str(images), str(output), "--format", form, "--workers", "2"]


def completed(command: list[str]) -> None:
    """Run a command to its end. Raises ToyError where it fails."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        said = found.stderr.strip().splitlines() or ["nothing"]
        raise ToyError(f"{command[1]} ended with {found.returncode} and said {said[-1]}; try it alone")


def run(folder: Path) -> Path:
    """A run of six steps with two checkpoints, evaluated by kNN, beside the `tree` that it was trained on."""
    shutil.copytree(_template().name, folder, dirs_exist_ok=True)
    return folder / "run"


@cache
def _template() -> TemporaryDirectory[str]:
    """What `run` copies, made once a process."""
    made = TemporaryDirectory()
    images, output = tree(Path(made.name), 24), Path(made.name) / "run"
    completed(train(images, output, "--epochs", "2", "--log.checkpoint-every", "3"))
    completed([sys.executable, str(CHECKOUT / "train" / "evaluate.py"), str(output), "--knn", "--val", str(images)])
    return made
