"""The fences around ffcv's known defects, and damage. Agreement with the other backends: test_same_views.py."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from jpegs import HARMLESS, ODD_SAMPLINGS, harmless, jpeg, of_sampling, picture
from needs import needs
from PIL import Image

needs("ffcv", module=True)

from equimod.pipelines.backends import BackendUnavailableError  # noqa: E402
from equimod.pipelines.batch import Decoded  # noqa: E402
from equimod.pipelines.build import Pipeline, build_pipeline  # noqa: E402
from equimod.pipelines.conversion import open_source  # noqa: E402
from equimod.pipelines.conversion.beton_writer import write_beton  # noqa: E402
from equimod.pipelines.conversion.convert import convert  # noqa: E402
from equimod.pipelines.conversion.convert_beton import convert_to_beton  # noqa: E402
from equimod.pipelines.conversion.settings import ConversionSettings  # noqa: E402
from equimod.pipelines.policy import POLICIES, AugmentationPolicy  # noqa: E402
from equimod.pipelines.records import open_records  # noqa: E402
from equimod.pipelines.records.beton import MAGIC, BetonRecords  # noqa: E402
from equimod.pipelines.records.protocol import RecordsError  # noqa: E402
from equimod.pipelines.records.tar import TarRecords  # noqa: E402

POLICY = POLICIES["simclr_shapes"]
DAMAGED = 5  # position


@pytest.fixture(scope="module")
def beton(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beton")
    convert(image_tree, folder / "tar", ConversionSettings(workers=1))
    records = TarRecords(folder / "tar")
    write_beton(records, folder / "tree.beton", records.manifest)
    return folder / "tree.beton"


def _pipeline(path: Path, **settings: object) -> Pipeline:
    settings = {"backend": "ffcv", "batch_size": 8, "seed": 3, "workers": 2} | settings
    return build_pipeline(open_records(path), POLICY, **settings)


@pytest.fixture(scope="module")
def pipeline(beton: Path) -> Pipeline:
    """One for all tests that do not change it: numba takes seconds to compile."""
    return _pipeline(beton)


def _images(batch: Decoded) -> tuple[torch.Tensor, ...]:
    return batch.images


def _same(a: Decoded, b: Decoded) -> bool:
    return all(torch.equal(p, q) for p, q in zip(_images(a), _images(b), strict=True))


def test_batches_are_kept_while_the_next_ones_are_read(pipeline: Pipeline) -> None:
    kept = list(pipeline.decoded(0))
    copies = [[image.clone() for image in _images(batch)] for batch in kept]
    for epoch in range(1, 5):
        list(pipeline.decoded(epoch))
    for batch, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(_images(batch), copy, strict=True))


def test_images_do_not_depend_on_the_number_of_threads(pipeline: Pipeline, beton: Path) -> None:
    alone = _pipeline(beton, workers=1)
    assert all(_same(a, b) for a, b in zip(pipeline.decoded(1), alone.decoded(1), strict=True))


def test_two_pipelines_read_in_turns(pipeline: Pipeline, beton: Path) -> None:
    """Training and evaluation may be open at once."""
    other = _pipeline(beton, with_x=False)
    expected = list(pipeline.decoded(0))
    for batch, a, b in zip(expected, pipeline.decoded(0), other.decoded(0), strict=True):
        assert _same(batch, a)
        assert _images(a)[1].equal(_images(b)[0])


def test_an_epoch_started_later_is_the_same(pipeline: Pipeline) -> None:
    whole = list(pipeline.decoded(1))
    assert all(_same(a, b) for a, b in zip(whole[1:], pipeline.decoded(1, start_step=1), strict=True))


def test_an_early_break_leaves_no_thread_behind(pipeline: Pipeline) -> None:
    threads = threading.active_count()
    for _ in range(3):
        broken = pipeline.decoded(0)
        next(broken)
        assert threading.active_count() > threads
        broken.close()
        assert threading.active_count() == threads


def test_an_exception_in_ffcvs_thread_reaches_the_caller(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("ffcv.loader.epoch_iterator.EpochIterator.run_pipeline", fail)
    with pytest.raises(ZeroDivisionError, match="inside"):
        list(pipeline.decoded(0))


def test_torchs_number_of_threads_is_left_alone(beton: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        list(_pipeline(beton, workers=1).decoded(0))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_evaluation_reads_every_sample_in_order_and_a_shorter_last_batch(beton: Path) -> None:
    policy = AugmentationPolicy(POLICIES["simclr_shapes"].x, views=())
    batches = {
        backend: list(
            build_pipeline(open_records(beton), policy, backend=backend, batch_size=10, seed=0, shuffle=False).decoded(
                0
            )
        )
        for backend in ("native", "ffcv")
    }
    assert [len(batch) for batch in batches["ffcv"]] == [10, 10, 4]
    for a, b in zip(batches["native"], batches["ffcv"], strict=True):
        assert torch.equal(a.index, b.index)
        assert a.x is not None
        assert b.x is not None
        assert (a.x.float() - b.x.float()).abs().mean() < 2


def test_other_records_are_refused_with_the_remedy(image_tree: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"\.beton files on a disk only; convert the data to one"):
        _pipeline(image_tree)


@pytest.mark.parametrize(
    ("damage", "trailer"),
    # libjpeg-turbo may not notice zeros in the middle: only a checksum can
    [("truncated", True), ("header", True), ("middle", True), ("truncated", False), ("header", False)],
)
def test_a_damaged_jpeg_is_named_with_file_and_sample(damage: str, trailer: bool, beton: Path, tmp_path: Path) -> None:
    """With a trailer its checksum finds it; without one, as in files of others, the decoder has to."""
    records = BetonRecords(beton)
    start, length = int(records._pointer[DAMAGED]), int(records.length[DAMAGED])
    content = bytearray(beton.read_bytes())
    if not trailer:
        content = content.replace(MAGIC, bytes(len(MAGIC)))
    first, last = {"truncated": (length // 2, length), "header": (0, 60), "middle": (length // 2, length * 3 // 4)}[
        damage
    ]
    content[start + first : start + last] = bytes(last - first)
    path = tmp_path / "damaged.beton"
    path.write_bytes(content)
    name = r"class_0/005\.jpg \(damaged\.beton\)" if trailer else r"sample 5 \(damaged\.beton\)"
    with pytest.raises(RecordsError, match=name):
        list(_pipeline(path).decoded(0))


def test_huge_and_tiny_images_and_boxes_of_a_pixel(tmp_path: Path) -> None:
    """A box of one pixel gives an image of one colour; sides of some thousand pixels work."""
    (tmp_path / "tree" / "class").mkdir(parents=True)
    for number, size in enumerate([(1, 1), (3000, 20), (2, 3000), (2500, 2500)]):
        Image.fromarray(np.full((*size[::-1], 3), 200, np.uint8)).save(tmp_path / "tree" / "class" / f"{number}.jpg")
    convert(tmp_path / "tree", tmp_path / "tar", ConversionSettings(workers=1))
    records = TarRecords(tmp_path / "tar")
    write_beton(records, tmp_path / "sizes.beton", records.manifest)
    (batch,) = _pipeline(tmp_path / "sizes.beton", batch_size=4).decoded(0)
    for images in _images(batch):
        assert (images.float() - 200).abs().max() <= 2


def test_sound_jpegs_that_are_unusual_agree_with_the_native_backend(tmp_path: Path) -> None:
    """ffcv's decoder has the same code for a mere warning as for damage: what it is, decode_sample says."""
    folder = tmp_path / "tree" / "class"
    folder.mkdir(parents=True)
    contents = [harmless(jpeg(picture(96, 64)), kind) for kind in HARMLESS]
    contents += [of_sampling(sampling, 101, 67) for sampling in ODD_SAMPLINGS]
    for number, content in enumerate(contents):
        (folder / f"{number:02d}.jpg").write_bytes(content)
    settings = ConversionSettings(workers=1)
    convert_to_beton(open_source(tmp_path / "tree"), tmp_path / "x.beton", settings)
    records = open_records(tmp_path / "x.beton")
    assert [bytes(records.read(at)) for at in range(len(contents))] == contents
    several = (_pipeline(tmp_path / "x.beton", backend=backend, batch_size=11) for backend in ("native", "ffcv"))
    for a, b in zip(*(pipeline.decoded(0) for pipeline in several), strict=True):
        for p, q in zip(_images(a), _images(b), strict=True):
            assert (p.float() - q.float()).abs().mean(dim=(1, 2, 3)).max() < 10
