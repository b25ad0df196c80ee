"""Loaders of today beside this project's, for `throughput.py loader`, with readers, decoders or threads of their own.

What one has not got is torchvision's, on tensors. They make the crops and the boxes, and draw no other parameters.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from equimod.benchmarks.loaders import LoaderSettings, RepeatedRecords
from equimod.benchmarks.measure import Workload
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import Records, StoredImage

Sample = tuple[Any, ...]
_CHUNK = "64MB"  # litdata's own suggestion


class _Crops:
    """x and the crops of the views of an image, and their boxes (x, y, width, height)."""

    def __init__(self, policy: AugmentationPolicy) -> None:
        self._policy = policy

    def __call__(self, image: Tensor, label: int) -> Sample:
        """From an image, uint8 (3,H,W)."""
        x = self._policy.x
        whole = F.center_crop(F.resize(image, [x.resize], InterpolationMode(x.interpolation)), [x.size, x.size])
        views, boxes = [], []
        for view in self._policy.views:
            crop = view.crop
            assert not isinstance(crop, CenterPolicy)
            top, left, height, width = RandomResizedCrop.get_params(image, list(crop.scale), list(crop.ratio))
            size = [crop.size, crop.size]
            mode = InterpolationMode(crop.interpolation)
            views.append(F.resized_crop(image, top, left, height, width, size, mode))
            boxes.append(torch.tensor([left, top, width, height]))
        return whole, *views, *boxes, label


class _KorniaRsCrops(_Crops):
    """The same, cropped and resized by kornia-rs, from its own images."""

    def __call__(self, image: Any, label: int) -> Sample:
        x = self._policy.x
        scale = x.resize / min(image.width, image.height)
        resized = image.resize(round(image.width * scale), round(image.height * scale), x.interpolation)
        whole = resized.crop((resized.width - x.size) // 2, (resized.height - x.size) // 2, x.size, x.size)
        views, boxes = [], []
        like = torch.empty(3, image.height, image.width)  # get_params looks at nothing but the size
        for view in self._policy.views:
            crop = view.crop
            assert not isinstance(crop, CenterPolicy)
            top, left, height, width = RandomResizedCrop.get_params(like, list(crop.scale), list(crop.ratio))
            cut = image.crop(left, top, width, height).resize(crop.size, crop.size, crop.interpolation)
            views.append(_tensor(cut.to_numpy()))
            boxes.append(torch.tensor([left, top, width, height]))
        return _tensor(whole.to_numpy()), *views, *boxes, label


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


class _Views(Dataset[Sample]):
    def __init__(self, records: Records, decode: Callable[[StoredImage], Any], crops: _Crops) -> None:
        self._records, self._decode, self._crops = records, decode, crops

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> Sample:
        return self._crops(self._decode(self._records.read(position)), int(self._records.label[position]))


def _repeated(settings: LoaderSettings) -> Records:
    torch.set_num_threads(1)
    return RepeatedRecords(open_records(settings.records), settings.images)


def _in_dataloader(settings: LoaderSettings, decode: Callable[[StoredImage], Any], crops: type[_Crops]) -> Workload:
    loader = DataLoader(
        _Views(_repeated(settings), decode, crops(POLICIES[settings.policy])),
        batch_size=settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    return lambda epoch: (len(batch[0]) for batch in loader)


def torchcodec(settings: LoaderSettings) -> Workload:
    """torchcodec's JPEG decoder, in torch's DataLoader."""
    from torchcodec.decoders import decode_jpeg

    return _in_dataloader(settings, decode_jpeg, _Crops)


def kornia_rs(settings: LoaderSettings) -> Workload:
    """kornia-rs' decoder, crops and resampling, in torch's DataLoader."""
    from kornia_rs.image import Image

    return _in_dataloader(settings, lambda content: Image.decode(bytes(content)), _KorniaRsCrops)


def spdl(settings: LoaderSettings) -> Workload:
    """SPDL's threads and its decoder, which is FFmpeg's."""
    from spdl.io import load_image, to_torch
    from spdl.pipeline import PipelineBuilder

    def decode(content: StoredImage) -> Tensor:
        image: Tensor = to_torch(load_image(bytes(content)))
        return image.permute(2, 0, 1)

    views = _Views(_repeated(settings), decode, _Crops(POLICIES[settings.policy]))

    def load(epoch: int) -> Iterator[int]:
        order = np.random.default_rng(epoch).permutation(len(views)).tolist()
        builder = (
            PipelineBuilder().add_source(order).pipe(views.__getitem__, concurrency=settings.workers, max_failures=0)
        )
        batches = builder.aggregate(settings.batch_size, drop_last=True).pipe(default_collate).add_sink(2)
        pipeline = batches.build(num_threads=settings.workers)
        with pipeline.auto_stop():
            for batch in pipeline:
                yield len(batch[0])

    return load


def litdata(settings: LoaderSettings) -> Workload:
    """litdata's own files, written at the start, and its loader; decoded by torchvision, as its own JPEG type is."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    records = _repeated(settings)
    folder = tempfile.TemporaryDirectory(prefix="equimod-benchmark-")
    atexit.register(folder.cleanup)
    cache = Cache(folder.name, chunk_bytes=_CHUNK)
    for position in range(len(records)):
        cache[position] = {"image": bytes(records.read(position)), "label": int(records.label[position])}
    cache.done()
    cache.merge()
    dataset = StreamingDataset(
        folder.name,
        shuffle=True,
        drop_last=True,
        transform=partial(_litdata_views, _Crops(POLICIES[settings.policy])),
    )
    loader = StreamingDataLoader(
        dataset, batch_size=settings.batch_size, num_workers=settings.workers, persistent_workers=True
    )
    return lambda epoch: (len(batch[0]) for batch in loader)


def _litdata_views(crops: _Crops, sample: dict[str, Any]) -> Sample:
    from torchvision.io import ImageReadMode, decode_jpeg

    image = decode_jpeg(torch.frombuffer(bytearray(sample["image"]), dtype=torch.uint8), ImageReadMode.RGB)
    return crops(image, sample["label"])


LOADERS_OF_PEERS: dict[str, Callable[[LoaderSettings], Workload]] = {
    "spdl": spdl,
    "torchcodec": torchcodec,
    "kornia_rs": kornia_rs,
    "litdata": litdata,
}
