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
from torch.utils.data import Dataset, default_collate

from equimod.benchmarks.loaders import Crops, LoaderSettings, in_dataloader, of_a_round
from equimod.benchmarks.measure import Workload
from equimod.pipelines.policy import POLICIES, CenterPolicy, RandomResizedCrop
from equimod.pipelines.records.protocol import StoredImage

Sample = tuple[Any, ...]
_CHUNK = "64MB"  # litdata's own suggestion


class KorniaRsCrops(Crops):
    """The same, cropped and resized by kornia-rs, from its own images."""

    def like(self, image: Any) -> Any:
        return torch.empty(3, image.height, image.width)

    def whole(self, image: Any, x: CenterPolicy) -> Tensor:
        scale = x.resize / min(image.width, image.height)
        resized = image.resize(round(image.width * scale), round(image.height * scale), x.interpolation)
        whole = resized.crop((resized.width - x.size) // 2, (resized.height - x.size) // 2, x.size, x.size)
        return _tensor(whole.to_numpy())

    def cut(self, image: Any, box: tuple[int, int, int, int], crop: RandomResizedCrop) -> Tensor:
        return _tensor(image.crop(*box).resize(crop.size, crop.size, crop.interpolation).to_numpy())


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


class _Views(Dataset[Sample]):
    def __init__(self, settings: LoaderSettings, decode: Callable[[StoredImage], Any], crops: type[Crops]) -> None:
        self._records, self._decode = of_a_round(settings), decode
        self._crops = crops(POLICIES[settings.policy])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> Sample:
        images, boxes = self._crops(self._decode(self._records.read(position)))
        return *images, *boxes, int(self._records.label[position])


def torchcodec(settings: LoaderSettings) -> Workload:
    """torchcodec's JPEG decoder, in torch's DataLoader."""
    from torchcodec.decoders import decode_jpeg

    return in_dataloader(_Views(settings, decode_jpeg, Crops), settings)


def kornia_rs(settings: LoaderSettings) -> Workload:
    """kornia-rs' decoder, crops and resampling, in torch's DataLoader."""
    from kornia_rs.image import Image

    return in_dataloader(_Views(settings, lambda content: Image.decode(bytes(content)), KorniaRsCrops), settings)


def spdl(settings: LoaderSettings) -> Workload:
    """SPDL's threads and its decoder, which is FFmpeg's."""
    from spdl.io import load_image, to_torch
    from spdl.pipeline import PipelineBuilder

    def decode(content: StoredImage) -> Tensor:
        image: Tensor = to_torch(load_image(bytes(content)))
        return image.permute(2, 0, 1)

    views = _Views(settings, decode, Crops)

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

    records = of_a_round(settings)
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
        transform=partial(_litdata_views, Crops(POLICIES[settings.policy])),
    )
    loader = StreamingDataLoader(
        dataset, batch_size=settings.batch_size, num_workers=settings.workers, persistent_workers=True
    )
    return lambda epoch: (len(batch[0]) for batch in loader)


def _litdata_views(crops: Crops, sample: dict[str, Any]) -> Sample:
    from torchvision.io import ImageReadMode, decode_jpeg

    image = decode_jpeg(torch.frombuffer(bytearray(sample["image"]), dtype=torch.uint8), ImageReadMode.RGB)
    images, boxes = crops(image)
    return *images, *boxes, sample["label"]


LOADERS_OF_PEERS: dict[str, Callable[[LoaderSettings], Workload]] = {
    "spdl": spdl,
    "torchcodec": torchcodec,
    "kornia_rs": kornia_rs,
    "litdata": litdata,
}
