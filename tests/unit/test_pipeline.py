"""Whole pipelines: views equal torchvision's on the same parameters, and depend on nothing but their keys."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from equimod.benchmarks.reference import replay
from equimod.pipelines.batch import Batch, Decoded
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.params import draw
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, CenterPolicy
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import Records, RecordsError
from equimod.pipelines.resize import CropResizer, center_crop_specs

POLICY = POLICIES["simclr_shapes"]
BICUBIC = InterpolationMode.BICUBIC


def _batches(tree: Path, **arguments: object) -> list[Batch]:
    arguments = {"batch_size": 8, "seed": 3} | arguments
    return list(build_pipeline(open_records(tree), POLICY, **arguments).epoch(2))


def _same(a: Batch | Decoded, b: Batch | Decoded) -> bool:
    pairs = [(a.x, b.x), (a.label, b.label), (a.index, b.index)]
    for v, w in zip(a.views, b.views, strict=True):
        pairs += [(v.image, w.image), (v.encoding, w.encoding), (v.params.crop, w.params.crop)]
    return all(torch.equal(p, q) for p, q in pairs if p is not None and q is not None)


def _replay(records: Records, batch: Batch | Decoded, row: int, policy: AugmentationPolicy) -> list[torch.Tensor]:
    """x and the views of one sample before the operators, by Pillow and torchvision, from the batch's parameters."""
    position = int(np.searchsorted(records.index, int(batch.index[row])))
    image = Image.open(io.BytesIO(records.read(position))).convert("RGB")
    center_crop = v2.Compose([v2.Resize(policy.x.resize, BICUBIC), v2.CenterCrop(policy.x.size), v2.PILToTensor()])
    outputs = [center_crop(image)]
    for view in batch.views:
        x, y, width, height = view.params.crop[row].tolist()
        outputs.append(tv.pil_to_tensor(tv.resized_crop(image, y, x, height, width, [policy.size] * 2, BICUBIC)))
    return outputs


def test_views_and_x_of_real_images_are_torchvisions_within_half_a_level(imagenet_sample: Path) -> None:
    """Mean distance below 0.5 of 255 for every image; the sample holds gray, tiny, huge and odd-sized ones."""
    records, policy = open_records(imagenet_sample), POLICIES["simclr_imagenet"]
    pipeline = build_pipeline(records, policy, batch_size=32, seed=0, shuffle=False)
    means = []
    for batch in pipeline.decoded(0):
        for row in range(0, len(batch), 3):
            ours = [batch.x, *(view.image for view in batch.views)]
            for got, expected in zip(ours, _replay(records, batch, row, policy), strict=True):
                assert got is not None
                means.append((got[row].float() - expected.float()).abs().mean().item())
    assert len(means) > 300
    assert max(means) < 0.5


def test_augmented_views_of_real_images_are_torchvisions_within_half_a_level(imagenet_sample: Path) -> None:
    """The whole way, crop to solarize, in levels of 255, from Pillow's decode on."""
    records, policy = open_records(imagenet_sample), POLICIES["byol_imagenet"]
    batch = next(iter(build_pipeline(records, policy, batch_size=48, seed=4).epoch(0)))
    for number, (view, view_policy) in enumerate(zip(batch.views, policy.views, strict=True), 1):
        std = torch.tensor(view_policy.normalize.std)[:, None, None]
        for row in range(len(batch)):
            expected = replay(_replay(records, batch, row, policy)[number], view.params, row, view_policy)
            distance = (view.image[row] - expected).abs() * std * 255
            assert distance.mean() < 0.5, (number, row, distance.mean())


def _center(image: np.ndarray, policy: CenterPolicy) -> torch.Tensor:
    target = np.empty((policy.size, policy.size, 3), dtype=np.uint8)
    size = np.array([image.shape[1::-1]], dtype=np.int32)
    CropResizer(center_crop_specs(size, size, policy)[None], [target[None]])(0, image)
    return torch.from_numpy(target).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (256, 256), (300, 1000), (57, 91), (1001, 333)])
def test_x_is_placed_as_torchvision_places_it(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    policy: CenterPolicy = POLICIES["simclr_imagenet"].x
    transform = v2.Compose([v2.Resize(policy.resize, BICUBIC, antialias=True), v2.CenterCrop(policy.size)])
    expected = transform(torch.from_numpy(image).permute(2, 0, 1))
    assert torch.equal(_center(image, policy), expected)


def test_x_of_cifar10_is_the_image_itself(image_tree: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    got = _center(image, POLICIES["simclr_cifar10"].x)
    np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_are_bit_for_bit_the_same_whatever_the_number_of_threads(image_tree: Path, workers: int) -> None:
    for a, b in zip(_batches(image_tree, workers=3), _batches(image_tree, workers=workers), strict=True):
        assert _same(a, b)


def test_two_ranks_see_together_what_one_rank_sees(image_tree: Path) -> None:
    alone = _batches(image_tree)
    first, second = (_batches(image_tree, rank=rank, world_size=2) for rank in (0, 1))
    for whole, a, b in zip(alone, first, second, strict=True):
        assert torch.equal(whole.index, torch.cat([a.index, b.index]))
        for v, va, vb in zip(whole.views, a.views, b.views, strict=True):
            assert torch.equal(v.encoding, torch.cat([va.encoding, vb.encoding]))
            torch.testing.assert_close(v.image, torch.cat([va.image, vb.image]), rtol=0, atol=1e-5)


def test_an_epoch_started_at_a_later_step_goes_on_as_if_never_stopped(image_tree: Path) -> None:
    pipeline = build_pipeline(open_records(image_tree), POLICY, batch_size=8, seed=3)
    assert len(pipeline) == 3
    for a, b in zip(list(pipeline.epoch(1))[1:], pipeline.epoch(1, start_step=1), strict=True):
        assert _same(a, b)


def test_a_batch_may_be_kept_while_the_next_ones_are_read(image_tree: Path) -> None:
    pipeline = build_pipeline(open_records(image_tree), POLICY, batch_size=4, seed=3)
    kept = list(pipeline.decoded(0))
    for batch, again in zip(kept, pipeline.decoded(0), strict=True):
        assert _same(batch, again)


def test_index_and_label_are_those_of_the_source(image_tree: Path) -> None:
    records = open_records(image_tree)
    for batch in _batches(image_tree):
        assert batch.label.tolist() == records.label[batch.index].tolist()


def test_parameters_are_those_drawn_for_seed_epoch_index_and_view(image_tree: Path) -> None:
    records = open_records(image_tree)
    for batch in _batches(image_tree):
        for number, (view, policy) in enumerate(zip(batch.views, POLICY.views, strict=True)):
            drawn = draw(policy, records.size[batch.index], batch.index, seed=3, epoch=2, view=number)
            assert torch.equal(view.params.crop, drawn.crop)
            assert torch.equal(view.params.factors, drawn.factors)


def test_encodings_hold_the_parameters_that_made_the_view(image_tree: Path) -> None:
    for batch in _batches(image_tree):
        for view in batch.views:
            assert torch.equal(view.encoding[:, 4:8].long(), view.params.crop)


def test_without_x_nothing_of_it_is_computed(image_tree: Path) -> None:
    assert all(batch.x is None for batch in _batches(image_tree, with_x=False))


def test_evaluation_reads_every_sample_in_order(image_tree: Path) -> None:
    policy = AugmentationPolicy(POLICIES["simclr_shapes"].x, views=())
    batches = list(build_pipeline(open_records(image_tree), policy, batch_size=10, seed=0, shuffle=False).epoch(0))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(24))
    assert [len(batch) for batch in batches] == [10, 10, 4]


def test_a_damaged_image_ends_the_epoch_with_its_name(image_tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    for number, source in enumerate(sorted(image_tree.glob("class_0/*.jpg"))):
        (folder / f"{number}.jpg").write_bytes(source.read_bytes())
    records = open_records(tmp_path)
    damaged = folder / "5.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(RecordsError, match=r"5\.jpg.*index 5"):
        list(build_pipeline(records, POLICY, batch_size=4, seed=0).epoch(0))


def test_an_unknown_backend_is_refused_with_the_known_ones(image_tree: Path) -> None:
    with pytest.raises(ValueError, match="native"):
        build_pipeline(open_records(image_tree), POLICY, backend="nativ", batch_size=4, seed=0)
