"""The loaders that `throughput.py loader` compares: the same files, batches on the host, of uint8 crops or whole views.

All run with one torch thread a worker, as torch's DataLoader does by itself: parallelism is over images.
"""

from __future__ import annotations

import atexit
import io
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from equimod.benchmarks.augmenters import normalized, transforms
from equimod.benchmarks.measure import Workload
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.decode import RegionDecoder, decode
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy
from equimod.pipelines.policy import RandomResizedCrop as CropPolicy
from equimod.pipelines.records import Records, open_records
from equimod.pipelines.records.beton import BetonRecords
from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.selection import SelectedRecords
from equimod.pipelines.sampler import Sampler

_IMAGES_A_TASK = 8  # what the native backend gives a thread at a time with two workers and batches of 64


@dataclass(frozen=True)
class LoaderSettings:
    """What the loaders are given."""

    records: Path
    policy: str
    batch_size: int
    workers: int
    images: int  # a round
    augmented: bool  # whole views, with all operators, as float32; not only the crops


class RepeatedRecords(SelectedRecords):
    """Records of a round: `images` samples spread evenly over `records`, which repeat where they are fewer."""

    def __init__(self, records: Records, images: int) -> None:
        have, number = len(records), np.arange(images)
        super().__init__(records, number * have // images if images < have else number % have)
        self.index = number


def decode_alone(settings: LoaderSettings) -> Workload:
    """The ceiling: read and decode every image, whole, in as many threads, and drop it."""
    records = RepeatedRecords(open_records(settings.records), settings.images)
    sampler = Sampler(len(records), settings.batch_size, seed=0)

    def decode_some(positions: NDArray[np.int64]) -> int:
        decode_region = RegionDecoder()
        for position in positions.tolist():
            content, (width, height) = records.read(position), records.stored_size[position].tolist()
            if decode_region(content, (width, height), (0, 0, width, height)) is None:
                decode(content)
        return len(positions)

    def load(epoch: int) -> Iterator[int]:
        tasks = np.array_split(sampler.positions(epoch, 0, len(records)), -(-len(records) // _IMAGES_A_TASK))
        ready = 0
        with ThreadPoolExecutor(settings.workers) as pool:
            for images in pool.map(decode_some, tasks):
                ready += images
                while ready >= settings.batch_size:
                    ready -= settings.batch_size
                    yield settings.batch_size

    return load


def _pipeline(settings: LoaderSettings, backend: str, records: Records) -> Workload:
    """A pipeline of this project: x, two views, every parameter drawn and encoded."""
    torch.set_num_threads(1)
    pipeline = build_pipeline(
        records,
        POLICIES[settings.policy],
        backend=backend,
        batch_size=settings.batch_size,
        seed=0,
        workers=settings.workers,
    )
    batches = pipeline.epoch if settings.augmented else pipeline.decoded
    return lambda epoch: (len(batch) for batch in batches(epoch))


def native(settings: LoaderSettings) -> Workload:
    """The native backend."""
    return _pipeline(settings, "native", RepeatedRecords(open_records(settings.records), settings.images))


def dali(settings: LoaderSettings) -> Workload:
    """The DALI backend, on the CPU."""
    return _pipeline(settings, "dali", RepeatedRecords(open_records(settings.records), settings.images))


def ffcv(settings: LoaderSettings) -> Workload:
    """The FFCV backend, on a .beton file of the round's samples."""
    records = open_records(settings.records)
    if not isinstance(records, BetonRecords) or len(records) != settings.images:
        folder = tempfile.TemporaryDirectory(prefix="equimod-benchmark-")
        atexit.register(folder.cleanup)
        records = as_beton(RepeatedRecords(records, settings.images), Path(folder.name) / "round.beton")
    return _pipeline(settings, "ffcv", records)


def as_beton(records: Records, path: Path) -> BetonRecords:
    """Write `records` into a .beton file, as they are, and open it."""
    remarks = records.manifest.remarks if records.manifest else ()
    write_beton(records, path, Manifest("", "", None, None, False, len(records), 0, 0, {}, None, (), remarks, (), {}))
    return BetonRecords(path)


class Crops:
    """x and the crops of the views of an image, Pillow's or a tensor, as torchvision makes them."""

    def __init__(self, policy: AugmentationPolicy) -> None:
        self._policy = policy

    def __call__(self, image: Any) -> tuple[list[Any], list[Tensor]]:
        """The images, x first, and the boxes of the views (x, y, width, height)."""
        images, boxes = [self.whole(image, self._policy.x)], []
        for view in self._policy.views:
            crop = view.crop
            assert not isinstance(crop, CenterPolicy)
            top, left, height, width = RandomResizedCrop.get_params(
                self.like(image), list(crop.scale), list(crop.ratio)
            )
            images.append(self.cut(image, (left, top, width, height), crop))
            boxes.append(torch.tensor([left, top, width, height]))
        return images, boxes

    def like(self, image: Any) -> Any:
        """Something of the size of the image, that torchvision knows."""
        return image

    def whole(self, image: Any, x: CenterPolicy) -> Any:
        """The image that is not augmented."""
        return F.center_crop(F.resize(image, [x.resize], InterpolationMode(x.interpolation)), [x.size, x.size])

    def cut(self, image: Any, box: tuple[int, int, int, int], crop: CropPolicy) -> Any:
        """A box of the image, resized."""
        left, top, width, height = box
        size = [crop.size, crop.size]
        return F.resized_crop(image, top, left, height, width, size, InterpolationMode(crop.interpolation))


class _PillowViews(Dataset[tuple[Any, ...]]):
    """x, views and their boxes, by torchvision on Pillow images."""

    def __init__(self, records: Records, policy: AugmentationPolicy, augmented: bool) -> None:
        self._records, self._crops = records, Crops(policy)
        views = [transforms(view) if augmented else F.pil_to_tensor for view in policy.views]
        self._finish = [normalized(policy.x.normalize) if augmented else F.pil_to_tensor, *views]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        content = self._records.read(position)
        if isinstance(content, np.ndarray):
            image = Image.fromarray(content)
        else:
            with Image.open(io.BytesIO(content)) as file:
                image = file.convert("RGB")
        images, boxes = self._crops(image)
        finished = (finish(one) for finish, one in zip(self._finish, images, strict=True))
        return *finished, *boxes, int(self._records.label[position]), position


def torchvision_dataloader(settings: LoaderSettings) -> Workload:
    """torch's DataLoader with as many worker processes, its defaults but for workers that stay over the epochs."""
    return in_dataloader(_PillowViews(of_a_round(settings), POLICIES[settings.policy], settings.augmented), settings)


def of_a_round(settings: LoaderSettings) -> Records:
    """The records of a round, for a loader of others."""
    torch.set_num_threads(1)
    return RepeatedRecords(open_records(settings.records), settings.images)


def in_dataloader(dataset: Dataset[tuple[Any, ...]], settings: LoaderSettings) -> Workload:
    """Epochs of `dataset` from torch's DataLoader."""
    loader = DataLoader(
        dataset,
        batch_size=settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        persistent_workers=True,
        multiprocessing_context="fork",  # open records hold locks and memory maps, which do not pickle
    )
    return lambda epoch: (len(batch[0]) for batch in loader)


LOADERS: dict[str, Callable[[LoaderSettings], Workload]] = {
    "native": native,  # first to warm up: its error about a damaged image names the file
    "dali": dali,
    "ffcv": ffcv,
    "decode": decode_alone,
    "torchvision": torchvision_dataloader,
}
