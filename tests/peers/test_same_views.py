"""Every backend on every format gives the same parameters, bit for bit, and the same pixels within its tolerance.

The reference is torchvision on Pillow images, on all of the ImageNet sample: gray, tiny, huge and odd-sized files.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from equimod.pipelines.batch import Batch
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.conversion.beton_writer import write_beton
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import Records, open_records
from equimod.pipelines.records.tar import TarRecords
from equimod.pipelines.resolution import Resolution

POLICY = POLICIES["simclr_imagenet"]
SEED, EPOCH = 5, 2
BICUBIC = InterpolationMode.BICUBIC
TOLERANCE = {"native": 0.5, "dali": 0.5, "ffcv": 2.0}  # mean over the sample, levels of 255; ffcv resizes by area
PER_IMAGE = {"native": 0.5, "dali": 0.5, "ffcv": 10.0}  # mean over the worst image
PAIRS = [
    *((backend, form) for backend in ("native", "dali") for form in ("folder", "tar", "beton", "raw")),
    *(("ffcv", form) for form in ("beton", "raw")),
]


@pytest.fixture(scope="module")
def formats(imagenet_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample in every format."""
    folder = tmp_path_factory.mktemp("formats")
    paths = {"folder": imagenet_sample, "tar": folder / "tar", "beton": folder / "b.beton", "raw": folder / "r.beton"}
    convert(imagenet_sample, paths["tar"], ConversionSettings(workers=2))
    records = TarRecords(paths["tar"])
    for form in ("beton", "raw"):
        write_beton(records, paths[form], records.manifest, raw=form == "raw", workers=2)
    return paths


@pytest.fixture(scope="module")
def decoded(formats: dict[str, Path]) -> Callable[[str, str], Batch]:
    """An epoch of a backend on a format, as one batch."""

    @cache
    def load(backend: str, form: str) -> Batch:
        records = open_records(formats[form])
        pipeline = build_pipeline(records, POLICY, backend=backend, batch_size=len(records), seed=SEED)
        (batch,) = pipeline.decoded(EPOCH)
        return batch

    return load


@cache
def _reference(tree: Path) -> tuple[Tensor, ...]:
    """x and the views of the epoch, uint8 (N,3,S,S) each, by torchvision from the boxes of the native pipeline."""
    records = open_records(tree)
    (batch,) = build_pipeline(records, POLICY, batch_size=len(records), seed=SEED).decoded(EPOCH)
    center = v2.Compose([v2.Resize(POLICY.x.resize, BICUBIC), v2.CenterCrop(POLICY.x.size), v2.PILToTensor()])
    rows = []
    for row, position in enumerate(batch.index.tolist()):
        image = Image.open(io.BytesIO(bytes(records.read(position)))).convert("RGB")
        outputs = [center(image)]
        for view in batch.views:
            x, y, width, height = view.params.crop[row].tolist()
            outputs.append(tv.pil_to_tensor(tv.resized_crop(image, y, x, height, width, [POLICY.size] * 2, BICUBIC)))
        rows.append(outputs)
    return tuple(torch.stack(images) for images in zip(*rows, strict=True))


@pytest.mark.parametrize(("backend", "form"), PAIRS)
def test_parameters_are_the_same_bit_for_bit(decoded: Callable[[str, str], Batch], backend: str, form: str) -> None:
    if backend != "native":
        needs(backend)
    expected, got = decoded("native", "folder"), decoded(backend, form)
    assert torch.equal(expected.index, got.index)
    assert torch.equal(expected.label, got.label)
    for a, b in zip(expected.views, got.views, strict=True):
        assert torch.equal(a.encoding, b.encoding)
        assert all(torch.equal(p, q) for p, q in zip(vars(a.params).values(), vars(b.params).values(), strict=True))


@pytest.mark.parametrize(("backend", "form"), PAIRS)
def test_pixels_are_torchvisions_within_the_backends_tolerance(
    decoded: Callable[[str, str], Batch], imagenet_sample: Path, backend: str, form: str
) -> None:
    if backend != "native":
        needs(backend)
    batch = decoded(backend, form)
    assert batch.x is not None
    ours = [batch.x, *(view.image for view in batch.views)]
    for name, got, expected in zip(("x", "view 1", "view 2"), ours, _reference(imagenet_sample), strict=True):
        means = torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(got, expected, strict=True)])
        assert means.mean() < TOLERANCE[backend], (name, means.mean())
        assert means.max() < PER_IMAGE[backend], (name, means.max(), int(batch.index[means.argmax()]))


@pytest.mark.parametrize("backend", ["native", "dali", "ffcv"])
def test_a_backend_gives_the_same_pixels_from_every_format(decoded: Callable[[str, str], Batch], backend: str) -> None:
    if backend != "native":
        needs(backend)
    batches = [decoded(name, form) for name, form in PAIRS if name == backend and form != "raw"]
    for other in batches[1:]:
        assert all(torch.equal(a.image, b.image) for a, b in zip(batches[0].views, other.views, strict=True))


@pytest.mark.parametrize("backend", ["dali", "ffcv"])
def test_a_backend_follows_images_that_grow(formats: dict[str, Path], backend: str) -> None:
    needs(backend)
    records, grows = open_records(formats["beton"]), Resolution((160, POLICY.size), rising=1)
    found, expected = (
        build_pipeline(records, POLICY, backend=name, batch_size=64, seed=SEED, resolution=grows)
        for name in (backend, "native")
    )
    for epoch, size in ((0, 160), (1, POLICY.size)):
        ours, natives = next(found.decoded(epoch)), next(expected.decoded(epoch))
        for a, b in zip(ours.images, natives.images, strict=True):
            assert a.shape == b.shape == (64, 3, size, size)
            assert (a.float() - b.float()).abs().mean() < TOLERANCE[backend]


def test_the_sample_holds_what_makes_decoders_differ(imagenet_sample: Path) -> None:
    records: Records = open_records(imagenet_sample)
    gray = sum(Image.open(path).mode == "L" for path in sorted(imagenet_sample.glob("*/*")))
    assert gray >= 3
    assert records.size.min() < 100
    assert records.size.max() > 2000
    assert np.unique(records.size % 2, axis=0).shape[0] == 4
