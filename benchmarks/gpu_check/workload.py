"""What the sections work on: configurations, batches, images and records, at full size on a GPU, as toys on a CPU."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from equimod.benchmarks.augmenters import smooth_crops
from equimod.benchmarks.gpu_check.report import Job
from equimod.benchmarks.rehearse import Photos, batch_without_values, paper_config
from equimod.models.settings import EncoderSettings, MethodName
from equimod.pipelines.batch import Batch
from equimod.pipelines.params import AugmentationParams, draw
from equimod.pipelines.policy import POLICIES, AugmentationPolicy
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import Records, StoredImage
from equimod.train.config import Config
from equimod.train.distributed import DistInfo
from equimod.train.loop import TrainState
from equimod.train.run import build_train_state

PHOTOS = 64  # of ImageNet's size, where they are drawn
STEPS = 1000  # of an epoch, for the schedule alone


def config_of(job: Job, method: MethodName, equimod: bool) -> Config:
    """The paper's setting for ImageNet as one of 32 ranks has it, in bf16: 128 images, ResNet-50, 224 pixels.

    On a CPU 4 images of 32 pixels and a ResNet-10 of width 8.
    """
    config = replace(paper_config(method, equimod, 128, 1), precision="bf16")
    if job.full:
        return config
    return replace(
        config,
        encoder=EncoderSettings("resnet10", "cifar", 8),
        dataset="cifar10",
        policy="simclr_cifar10",
        augment=POLICIES["simclr_cifar10"],
        batch_size=4,
        precision="fp32",
        equivariance=replace(config.equivariance, projector=(16, 8), embedding=(8,)),
        **{method: _narrow(getattr(config, method))},
    )


def _narrow(settings: Any) -> Any:
    """Settings of a method with heads of a few neurons."""
    narrow = {
        "hidden": (16,) if isinstance(getattr(settings, "hidden", None), tuple) else 16,
        "dim": 8,
        "bottleneck": 4,
    }
    return replace(settings, **{f.name: narrow[f.name] for f in fields(settings) if f.name in narrow})


def alone(job: Job) -> DistInfo:
    """This process as the only rank."""
    return DistInfo(0, 0, 1, job.device)


def state_of(job: Job, config: Config) -> TrainState:
    """What a training of `config` trains, on the device."""
    return build_train_state(config, Photos(), STEPS, alone(job))


def random_batch(config: Config, device: torch.device) -> Batch:
    """A batch as the pipeline hands it over, on the device, of the same random numbers each time."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, device=device, generator=generator).to(like)

    empty = batch_without_values(config, config.batch_size, device)
    images = noise(empty.images).contiguous(memory_format=torch.channels_last)
    return replace(
        empty, images=images, encodings=tuple(map(noise, empty.encodings)), label=torch.zeros_like(empty.label)
    )


def drawn(policy: AugmentationPolicy, n: int) -> list[AugmentationParams]:
    """The parameters of `n` samples, one a view."""
    size = np.full((n, 2), policy.size)
    return [draw(v, size, np.arange(n), seed=0, epoch=0, view=k) for k, v in enumerate(policy.views)]


def crops(n: int, size: int) -> Tensor:
    """Uint8 crops (n,3,size,size) on the host, in memory as loaders write them."""
    return smooth_crops(n, size, torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


class DrawnRecords:
    """Smooth images with noise in two classes, in memory: `Records` without files."""

    def __init__(self, images: int, size: tuple[int, int], raw: bool) -> None:
        rng = np.random.default_rng(0)
        drawn = [_drawn_image(rng, size) for _ in range(images)]
        self._stored: list[StoredImage] = [image if raw else _jpeg(image) for image in drawn]
        self.raw, self.form, self.manifest, self.classes = raw, "drawn", None, ["even", "odd"]
        self.index: NDArray[np.int64] = np.arange(images)
        self.label = self.index % 2
        self.size: NDArray[np.int32] = np.tile(np.array(size, dtype=np.int32), (images, 1))
        self.stored_size = self.size
        self.length: NDArray[np.int64] = np.array([len(stored) for stored in self._stored])
        self.checksum = self.changed = self.remark = np.zeros(images, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, position: int) -> StoredImage:
        return self._stored[position]

    def will_read(self, positions: NDArray[np.int64]) -> None:
        pass

    wont_read = will_read

    def source(self, position: int) -> str:
        return f"drawn/{position}"

    name = source


def _drawn_image(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    smooth: NDArray[np.int16] = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    noisy: NDArray[np.int16] = smooth + rng.integers(-8, 9, smooth.shape, dtype=np.int16)
    return noisy.clip(0, 255).astype(np.uint8)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def photos(job: Job) -> tuple[Records, str]:
    """JPEG files of ImageNet's size, and a word on where they come from."""
    path = None if job.data is None else job.data / "imagenet.beton"
    if path is not None and path.is_file():
        return open_records(path), "real ImageNet files"
    width, height = job.sized((500, 375), (48, 40))
    return DrawnRecords(PHOTOS, (width, height), raw=False), f"drawn JPEG files of {width}x{height}"


def cifar10(job: Job) -> tuple[Path, Path] | None:
    """CIFAR-10's training and test images of the pack; None without one, and where there is no time for them."""
    if job.data is None or not job.full:
        return None
    train, test = (job.data / f"cifar10-{split}.beton" for split in ("train", "test"))
    return (train, test) if train.is_file() and test.is_file() else None
