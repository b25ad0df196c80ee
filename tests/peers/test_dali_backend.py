"""What is DALI's own: damage, kinds of images, memory, and the graph for a GPU. Agreement: test_same_views.py."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jpegs import HARMLESS, ODD_SAMPLINGS, harmless, jpeg, of_sampling, picture
from needs import needs
from PIL import Image

needs("dali", module=True)

from equimod.pipelines.backends.dali_backend import DaliBackend, graph  # noqa: E402
from equimod.pipelines.batch import Decoded  # noqa: E402
from equimod.pipelines.build import Pipeline, build_pipeline  # noqa: E402
from equimod.pipelines.codec import JpegHeader  # noqa: E402
from equimod.pipelines.conversion.convert import convert  # noqa: E402
from equimod.pipelines.conversion.settings import ConversionSettings  # noqa: E402
from equimod.pipelines.policy import POLICIES, AugmentationPolicy  # noqa: E402
from equimod.pipelines.records import open_records  # noqa: E402
from equimod.pipelines.records.protocol import RecordsError  # noqa: E402

POLICY = POLICIES["simclr_shapes"]


def _pipeline(path: Path, backend: str = "dali", **settings: object) -> Pipeline:
    settings = {"batch_size": 8, "seed": 3, "workers": 2} | settings
    return build_pipeline(open_records(path), POLICY, backend=backend, **settings)


def _images(batch: Decoded) -> tuple[torch.Tensor, ...]:
    return batch.images


def _same(a: Decoded, b: Decoded) -> bool:
    return all(torch.equal(p, q) for p, q in zip(_images(a), _images(b), strict=True))


def _one_class(folder: Path, contents: list[bytes], suffix: str = "jpg") -> Path:
    (folder / "class").mkdir(parents=True)
    for number, content in enumerate(contents):
        (folder / "class" / f"{number}.{suffix}").write_bytes(content)
    return folder


def _jpegs(tree: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(tree.glob("class_0/*.jpg"))]


def test_batches_are_kept_while_the_next_ones_are_read(image_tree: Path) -> None:
    """The memory of an output must not be used again: 20 epochs would go through any ring of buffers."""
    pipeline = _pipeline(image_tree, batch_size=4)
    kept = list(pipeline.decoded(0))
    copies = [[image.clone() for image in _images(batch)] for batch in kept]
    for epoch in range(1, 20):
        list(pipeline.decoded(epoch))
    for batch, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(_images(batch), copy, strict=True))


@pytest.mark.parametrize("workers", [1, 3])
def test_images_do_not_depend_on_the_number_of_threads(image_tree: Path, workers: int) -> None:
    expected, got = _pipeline(image_tree), _pipeline(image_tree, workers=workers)
    assert all(_same(a, b) for a, b in zip(expected.decoded(1), got.decoded(1), strict=True))


def test_an_epoch_started_later_or_after_an_early_break_is_the_same(image_tree: Path) -> None:
    pipeline = _pipeline(image_tree)
    whole = list(pipeline.decoded(1))
    threads = threading.active_count()
    broken = pipeline.decoded(0)
    next(broken)
    broken.close()
    assert threading.active_count() == threads
    assert all(_same(a, b) for a, b in zip(whole[1:], pipeline.decoded(1, start_step=1), strict=True))
    assert all(_same(a, b) for a, b in zip(whole, pipeline.decoded(1), strict=True))


def test_two_epochs_read_at_the_same_time_are_those_read_one_after_the_other(image_tree: Path) -> None:
    pipeline = _pipeline(image_tree, batch_size=4)
    alone = [list(pipeline.decoded(epoch)) for epoch in (0, 1)]
    together = list(zip(pipeline.decoded(0), pipeline.decoded(1), strict=True))
    for first, second, (a, b) in zip(*alone, together, strict=True):
        assert _same(first, a)
        assert _same(second, b)


def test_evaluation_reads_every_sample_in_order_and_a_shorter_last_batch(image_tree: Path) -> None:
    policy = AugmentationPolicy(POLICIES["simclr_shapes"].x, views=())
    batches = {
        backend: list(
            build_pipeline(
                open_records(image_tree), policy, backend=backend, batch_size=10, seed=0, shuffle=False
            ).decoded(0)
        )
        for backend in ("native", "dali")
    }
    assert [len(batch) for batch in batches["dali"]] == [10, 10, 4]
    for a, b in zip(batches["native"], batches["dali"], strict=True):
        assert torch.equal(a.index, b.index)
        assert a.x is not None
        assert b.x is not None
        assert (a.x.float() - b.x.float()).abs().mean() < 0.5


def test_without_x_there_are_views_only(image_tree: Path) -> None:
    assert all(batch.x is None and len(batch.views) == 2 for batch in _pipeline(image_tree, with_x=False).decoded(0))


@pytest.mark.parametrize(
    "kind", ["CMYK JPEG", "RGB PNG", "palette PNG", "16-bit PNG", "PNG with alpha", "JPEG with a tail"]
)
def test_images_that_are_no_plain_jpeg_look_as_pillow_shows_them(kind: str, image_tree: Path, tmp_path: Path) -> None:
    contents = []
    for content in _jpegs(image_tree):
        image, buffer = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
        if kind == "CMYK JPEG":
            image.convert("CMYK").save(buffer, "JPEG", quality=95)
        elif kind == "JPEG with a tail":
            buffer.write(content + bytes(5000))
        elif kind == "16-bit PNG":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(buffer, "PNG")
        else:
            modes = {"RGB PNG": "RGB", "palette PNG": "P", "PNG with alpha": "RGBA"}
            image.convert(modes[kind]).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    tree = _one_class(tmp_path, contents, "jpg" if "JPEG" in kind else "png")
    for a, b in zip(_pipeline(tree, "native").decoded(0), _pipeline(tree).decoded(0), strict=True):
        for p, q in zip(_images(a), _images(b), strict=True):
            assert (p.float() - q.float()).abs().mean() < 0.5


def _damaged(content: bytes, damage: str) -> bytes:
    half = len(content) // 2
    return {
        "truncated": content[:half],
        "header": bytes(300) + content[300:],
        "empty": b"",
        "no image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "middle": content[:half] + bytes(half // 2) + content[half + half // 2 :],
    }[damage]


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "no image"])
def test_damage_in_a_tree_is_named_with_file_and_sample(damage: str, image_tree: Path, tmp_path: Path) -> None:
    tree = _one_class(tmp_path, _jpegs(image_tree))
    pipeline = _pipeline(tree)
    path = tree / "class" / "5.jpg"
    path.write_bytes(_damaged(path.read_bytes(), damage))
    with pytest.raises(RecordsError, match=r"5\.jpg.*index 5"):
        list(pipeline.decoded(0))
    assert len(list(_pipeline(image_tree).decoded(0))) == 3  # DALI itself goes on


def test_what_only_dali_rejects_is_named_by_batch(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = _one_class(tmp_path, _jpegs(image_tree))
    pipeline = _pipeline(tree)
    path = tree / "class" / "5.jpg"
    monkeypatch.setattr("equimod.pipelines.backends.dali_backend.decode_sample", lambda *_: None)
    header = JpegHeader(1, 1, components=3, orderly=True, many_scans=False)
    monkeypatch.setattr("equimod.pipelines.backends.dali_backend.read_jpeg_header", lambda _: header)
    path.write_bytes(b"\xff\xd8" + bytes(100) + b"\xff\xd9")
    with pytest.raises(RecordsError, match=r"DALI cannot decode a batch, whose first sample is .*jpg.*: .+"):
        list(pipeline.decoded(0))


@pytest.mark.parametrize("damage", ["truncated", "header", "middle"])
def test_damage_in_records_is_named_with_file_and_sample(damage: str, image_tree: Path, tmp_path: Path) -> None:
    convert(image_tree, tmp_path / "records", ConversionSettings(workers=1))
    pipeline = _pipeline(tmp_path / "records")
    shard = tmp_path / "records" / "shard-000000.tar"
    whole, jpeg = shard.read_bytes(), _jpegs(image_tree)[5]
    at = whole.index(jpeg)
    damaged = _damaged(jpeg, damage).ljust(len(jpeg), b"\0")
    with shard.open("r+b") as file:
        file.seek(at)
        file.write(damaged)
    with pytest.raises(RecordsError, match=r"class_0/005\.jpg \(records/shard-000000\.tar\)"):
        list(pipeline.decoded(0))


@pytest.mark.parametrize("pixels", [False, True])
def test_the_graph_for_a_gpu_is_built_and_serialized_without_one(pixels: bool) -> None:
    """Only the eleven inputs are on the host; everything from the decoder on runs on the GPU and stays there."""
    settings = {"with_x": True, "pixels": pixels, "batch_size": 8, "num_threads": 2, "device_id": None}

    def devices(gpu: bool) -> list[bytes]:
        serialized = graph(POLICY, gpu=gpu, **settings).serialize()
        return re.findall(rb"\x06device\x12\x06string\*.(cpu|gpu|mixed)", serialized, re.DOTALL)

    found = devices(gpu=True)
    assert found.count(b"cpu") == 11
    assert found.count(b"mixed") == (not pixels)
    assert found.count(b"gpu") >= 5  # three resizes and two slices
    assert set(devices(gpu=False)) == {b"cpu"}
    chroma = graph(POLICY, gpu=True, **settings).serialize().count(b"jpeg_fancy_upsampling")
    assert chroma == (not pixels)


def test_outputs_on_a_gpu_come_in_the_order_of_the_consumers_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, asked = DaliBackend.__new__(DaliBackend), []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of GPU {device}")
    pipeline: Any = SimpleNamespace(outputs=lambda **options: asked.append(options))
    for device_id in (1, None):
        backend._settings = {"device_id": device_id}
        backend._outputs(pipeline)
    assert asked == [{"cuda_stream": "the stream of GPU 1"}, {}]


@pytest.mark.parametrize("kind", [*HARMLESS, *ODD_SAMPLINGS])
def test_sound_jpegs_that_are_unusual_agree_with_the_native_backend(kind: str, tmp_path: Path) -> None:
    """Bytes between headers alone are more than DALI's parser takes: it gets those pixels from here."""
    odd = of_sampling(kind, 101, 67) if kind in ODD_SAMPLINGS else harmless(jpeg(picture(96, 64)), kind)
    tree = _one_class(tmp_path, [odd, *(jpeg(picture(90, 60, seed)) for seed in range(7))])
    for a, b in zip(_pipeline(tree, "native").decoded(0), _pipeline(tree).decoded(0), strict=True):
        for p, q in zip(_images(a), _images(b), strict=True):
            assert (p.float() - q.float()).abs().mean() < 0.5
