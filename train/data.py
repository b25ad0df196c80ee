"""The records of a run: those it is given, or those of a data set that can be made on the spot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.request import Request, urlopen

import torch

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion import Source, open_source
from equimod.pipelines.conversion.cifar import Split, cifar10_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.cores import available_cores
from equimod.pipelines.durable import durable_file
from equimod.pipelines.errors import spaced
from equimod.pipelines.images import open_images
from equimod.pipelines.policy import AugmentationPolicy, CenterPolicy, Normalize
from equimod.pipelines.progress import reading, say, track
from equimod.pipelines.records.header_cache import cache_folder
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.shapes import FACTORS, draw_dataset
from equimod.train.config import Config, ConfigError
from equimod.train.distributed import DistInfo, barrier, first_on_each_node

SHAPES_SAMPLES: dict[Split, int] = {"train": 10_000, "test": 2_000}
MEASURED = 2048  # images
SMALLEST_STD = 0.004  # of images that are all alike
SPLITS: tuple[Split, ...] = ("train", "test")


def prepare(config: Config, dist_info: DistInfo) -> tuple[Config, Records]:
    """The training records, and the configuration with the paths of what was made for it.

    shapes is drawn and cifar10 downloaded, once, into $EQUIMOD_CACHE (by default ~/.cache/equimod), where --data is
    not given. Raises ConfigError where that fails or validation classes are unknown, RecordsError for bad records.
    """
    if not config.data:
        assert config.dataset is not None
        make = {"shapes": _draw_shapes, "cifar10": _download_cifar10}[config.dataset]
        cache = cache_folder() / config.dataset
        if dist_info.rank == 0:
            for split in SPLITS:
                _make_once(cache, split, make)
        barrier(dist_info)
        config = replace(config, data=(cache / "train",), val=config.val or (cache / "test",))
    assert config.data is not None
    records = first_on_each_node(partial(open_images, config.data, config.labels), dist_info)
    if config.online_probe and not records.classes:
        raise ConfigError(
            f"online_probe learns from labels, and data={spaced(config.data)} has none; leave --online-probe out"
        )
    if config.val:
        val = first_on_each_node(partial(open_images, config.val, config.labels), dist_info)
        check_classes(records, val, config.val)
    return config, records


def measured_normalization(records: Records, policy: CenterPolicy, *, workers: int | None = None) -> Normalize:
    """Mean and standard deviation of each channel over the pixels of images x, at most MEASURED of them.

    The same records give the same numbers, to four decimals, on every rank.
    """
    identity = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    images = AugmentationPolicy(replace(policy, normalize=identity), views=())
    batch_size = min(64, len(records))
    pipeline = build_pipeline(records, images, batch_size=batch_size, seed=0, device="cpu", workers=workers)
    batches = max(1, min(MEASURED // batch_size, len(pipeline)))
    sums, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in track(islice(pipeline.epoch(0), batches), batches, "mean and standard deviation", "batches"):
        assert batch.x is not None
        x = batch.x.double()
        sums += x.mean((0, 2, 3)) / batches
        squares += (x * x).mean((0, 2, 3)) / batches
    deviation = (squares - sums * sums).clamp(min=0).sqrt()
    mean, std = ([round(value, 4) for value in values.tolist()] for values in (sums, deviation))
    return Normalize(tuple(mean), tuple(max(value, SMALLEST_STD) for value in std))


def check_classes(train: Records, val: Records, paths: Sequence[Path]) -> None:
    """Raise ConfigError where the validation set has other classes than a training set with labels."""
    unknown = sorted(set(val.classes) - set(train.classes)) if train.classes else []
    if unknown:
        raise ConfigError(
            f"val={spaced(paths)} has {len(unknown)} classes that the training data does not know, such as "
            f"{unknown[0]!r}; give the validation split of the same data set"
        )


def _make_once(cache: Path, split: Split, make: Callable[[Path, Split, Path], Source]) -> None:
    """Make the source of a split, where need be in a scratch folder, and convert it into `cache`/`split`."""
    records = cache / split
    if (records / "manifest.json").exists():
        return
    cache.mkdir(parents=True, exist_ok=True)
    say(f"making {records} (once)")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        source = make(Path(scratch) / split, split, cache)
        converted = Path(scratch) / "records"
        convert(source, converted, ConversionSettings(workers=available_cores()))
        if not records.exists():  # another run may have been quicker
            converted.rename(records)


def _draw_shapes(tree: Path, split: Split, cache: Path) -> Source:
    draw_dataset(tree, split=split, samples=SHAPES_SAMPLES[split], seed=0, workers=available_cores())
    shutil.copy(tree / FACTORS, cache / f"{split}-{FACTORS}")
    return open_source(tree)


def _download_cifar10(tree: Path, split: Split, cache: Path) -> Source:
    from torchvision.datasets import CIFAR10

    folder, archive = cache / "download", cache / "download" / CIFAR10.filename
    try:
        if not archive.exists() and not (folder / CIFAR10.base_folder).exists():
            _fetch(CIFAR10.url, archive)
        CIFAR10(str(folder), train=split == "train", download=True)  # checks and unpacks it
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"cannot download CIFAR-10 ({error}); give --data RECORDS") from error
    return cifar10_source(folder, split)


def _fetch(url: str, path: Path) -> None:
    """Download a file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with urlopen(Request(url, headers={"User-Agent": "equimod"})) as answer:
        size = int(answer.headers["Content-Length"] or 0)
        with durable_file(path) as file, reading(answer, size, f"downloading {path.name}") as shown:
            shutil.copyfileobj(shown, file, 2**20)
