"""Features that evaluations keep on disk: made once, in what the encoder computes in, and never taken for others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from equimod.models.encoder import build_encoder
from equimod.models.settings import EncoderSettings
from equimod.pipelines.durable import locked
from equimod.pipelines.policy import POLICIES, AugmentationPolicy, evaluation_policy
from equimod.pipelines.records import open_records
from equimod.train.distributed import DistInfo
from equimod.train.embedding import blocks
from equimod.train.embedding.blocks import Blocks, EmbeddingError
from equimod.train.evaluation import stored_features as stored
from equimod.train.evaluation.features import Features, FrozenEncoder, ViewSet
from equimod.train.evaluation.knn import KnnSettings, votes

POLICY = evaluation_policy(POLICIES["simclr_cifar10"], "cifar10").x
WEIGHTS = "0" * 64


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 images, in batches of 3."""
    monkeypatch.setattr(blocks, "BATCH_SIZE", 3)
    monkeypatch.setattr(blocks, "BATCHES", 2)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the blocks that are made."""
    write, made = Blocks.write, list[int]()

    def count(self: Blocks, number: int, h: Tensor) -> None:
        made.append(number)
        write(self, number, h)

    monkeypatch.setattr(Blocks, "write", count)
    return made


def _encoder(autocast: torch.dtype | None = None) -> FrozenEncoder:
    torch.manual_seed(0)
    return FrozenEncoder(build_encoder(EncoderSettings(arch="resnet10", width=8)), autocast)


def _stored(folder: Path, images: Path, encoder: FrozenEncoder, weights: str = WEIGHTS, pixels: int = 32) -> Blocks:
    x, alone = replace(POLICY, size=pixels), DistInfo(0, 0, 1, torch.device("cpu"))
    return stored.stored_features(folder, weights, encoder, open_records(images), x, dist_info=alone, workers=1)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_they_are_to_the_bit_what_the_encoder_makes(
    image_tree: Path, tmp_path: Path, autocast: torch.dtype | None
) -> None:
    encoder, records = _encoder(autocast), open_records(image_tree)
    found = _stored(tmp_path, image_tree, encoder).load()
    assert found.dtype == (autocast or torch.float32)
    images = ViewSet(encoder, records, AugmentationPolicy(POLICY, views=()), workers=1)
    # In batches of the same size, on which rounding depends.
    expected = torch.cat([h for _, h, _ in images.represent("", batch_size=3)])
    assert torch.equal(found.float(), expected)


def test_what_is_there_is_not_made_again_and_what_is_other_is(
    image_tree: Path, tmp_path: Path, written: list[int], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _stored(tmp_path, image_tree, _encoder())
    assert written == [0, 1, 2, 3]
    assert f"features of 24 images are kept in {first.folder} (" in capsys.readouterr().out
    assert _stored(tmp_path, image_tree, _encoder()).folder == first.folder
    assert written == [0, 1, 2, 3]
    assert capsys.readouterr().out == ""
    os.utime(source / "class_0" / min(path.name for path in (source / "class_0").iterdir()), (1, 1))
    others = [
        _stored(tmp_path, image_tree, _encoder(torch.bfloat16)),
        _stored(tmp_path, image_tree, _encoder(), pixels=24),
        _stored(tmp_path, source, _encoder()),  # with a file of another date
    ]
    assert written == [0, 1, 2, 3] * 4
    assert len({first.folder, *(other.folder for other in others)}) == 4
    assert all(other.folder.is_dir() for other in (first, *others))
    anew = _stored(tmp_path, image_tree, _encoder(), weights="1" * 64)
    assert written == [0, 1, 2, 3] * 5
    assert list((tmp_path / stored.FOLDER).iterdir()) == [anew.folder.parent]


def test_features_that_another_process_is_making_are_not_removed(image_tree: Path, tmp_path: Path) -> None:
    others = _stored(tmp_path, image_tree, _encoder())
    with locked(others.folder):
        _stored(tmp_path, image_tree, _encoder(), weights="1" * 64)
    assert others.load().shape == (24, 64)
    _stored(tmp_path, image_tree, _encoder(), weights="1" * 64)
    assert not others.folder.exists()


def test_other_code_makes_them_anew(image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _stored(tmp_path, image_tree, _encoder())
    monkeypatch.setattr(blocks, "code_digests", lambda: {"models/encoder.py": "changed"})
    assert _stored(tmp_path, image_tree, _encoder()).folder != before.folder


def test_what_is_interrupted_goes_on(image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, made = Blocks.write, list[int]()

    def cut(self: Blocks, number: int, h: Tensor) -> None:
        made.append(number)
        write(self, number, h)
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Blocks, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        _stored(tmp_path, image_tree, _encoder())
    found = _stored(tmp_path, image_tree, _encoder()).load()
    assert made == [0, 1, 2, 3]
    assert torch.equal(found, _stored(tmp_path / "other", image_tree, _encoder()).load())


def test_a_damaged_block_is_named(image_tree: Path, tmp_path: Path) -> None:
    found = _stored(tmp_path, image_tree, _encoder())
    block = min(found.folder.glob("block-000001*"))
    content = bytearray(block.read_bytes())
    content[7] ^= 4
    block.write_bytes(content)
    with pytest.raises(EmbeddingError, match=f"{block} is damaged; remove it and run the same command again"):
        _stored(tmp_path, image_tree, _encoder()).load()
    block.unlink()
    _stored(tmp_path, image_tree, _encoder()).load()


def test_neighbours_in_half_precision_are_those_of_the_same_numbers_in_float32() -> None:
    torch.manual_seed(0)
    h, queries = torch.randn(50, 8).bfloat16(), torch.randn(9, 8)
    half = Features(h, torch.randint(3, (50,)), ("a", "b", "c"))
    assert torch.equal(votes(half, queries, KnnSettings(k=5)), votes(half.float(), queries, KnnSettings(k=5)))
