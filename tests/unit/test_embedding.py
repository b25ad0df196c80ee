"""Features of a data set in a file: in the source's order, the same after an interruption, and their neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from needs import needs
from PIL import Image
from timm_cache import cached_weights

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import AugmentationPolicy
from equimod.pipelines.records import open_records
from equimod.tools.embed import main as embed
from equimod.tools.export import main as export
from equimod.tools.neighbours import main as neighbours
from equimod.train.config import ConfigError
from equimod.train.embedding import blocks
from equimod.train.embedding import neighbours as found_by
from equimod.train.embedding.blocks import Blocks
from equimod.train.embedding.files import Embeddings, read_embeddings
from equimod.train.embedding.neighbours import find
from equimod.train.main import main as train
from equimod.train.opened_encoder import open_encoder

CPU = ["--device", "cpu", "--workers", "1"]


@pytest.fixture(scope="module")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding") / "run"
    assert train([*options, "--epochs", "2", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 6 images, in batches of 3."""
    monkeypatch.setattr(blocks, "BATCH_SIZE", 3)
    monkeypatch.setattr(blocks, "BATCHES", 2)


def _expected(run: Path, images: Path) -> np.ndarray:
    opened, records = open_encoder(str(run)), open_records(images)
    pipeline = build_pipeline(records, AugmentationPolicy(opened.x, ()), batch_size=24, seed=0, shuffle=False)
    with torch.no_grad():
        return opened.encoder(next(pipeline.epoch(0)).images).numpy()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.usefixtures("small_blocks")
def test_features_are_those_of_x_in_the_order_of_the_source(
    suffix: str, run: Path, image_tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"features{suffix}"
    assert embed([str(run), str(image_tree), str(out), *CPU]) == 0
    found, records = read_embeddings(out), open_records(image_tree)
    np.testing.assert_allclose(found.h, _expected(run, image_tree), rtol=1e-4, atol=1e-5)
    assert found.h.dtype == np.float32
    assert list(found.path) == [records.source(position) for position in range(24)]
    assert np.array_equal(found.index, records.index)
    assert found.source == image_tree
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_other_programs_read_the_files(run: Path, image_tree: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    for name in ("a.npz", "a.parquet"):
        assert embed([str(run), str(image_tree), str(tmp_path / name), *CPU]) == 0
    records, stored = open_records(image_tree), np.load(tmp_path / "a.npz")
    assert set(stored) == {"features", "path", "index", "label", "classes", "source"}
    assert np.array_equal(stored["label"], records.label)
    assert stored["classes"].tolist() == records.classes
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["path", "index", "label", "class", "features"]
    assert table["class"].to_pylist() == [records.classes[label] for label in records.label]
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), stored["features"])


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.usefixtures("small_blocks")
def test_what_is_interrupted_goes_on_to_the_same_bytes(
    suffix: str, run: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"interrupted{suffix}"
    assert embed([str(run), str(image_tree), str(whole), *CPU]) == 0
    write, made = Blocks.write, list[int]()

    def counted(self: Blocks, number: int, h: np.ndarray) -> None:
        made.append(number)
        write(self, number, h)
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Blocks, "write", counted)
    assert embed([str(run), str(image_tree), str(out), *CPU]) == 130
    assert not out.exists()
    assert embed([str(run), str(image_tree), str(out), *CPU]) == 0
    assert made == [0, 1, 2, 3]
    assert out.read_bytes() == whole.read_bytes()


@pytest.fixture
def interrupted(
    run: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> Iterator[Path]:
    """Where the blocks of a file lie that is not written yet: all are there."""
    from equimod.train.embedding import run as embedding

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_embeddings", stop)
        assert embed([str(run), str(image_tree), str(tmp_path / "a.npz"), *CPU]) == 130
    return tmp_path / "a.npz.parts"


def test_blocks_of_other_images_are_not_gone_on_with(
    interrupted: Path, run: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30)).save(source / "class_0" / "0.jpg")
    assert embed([str(run), str(source), str(interrupted.with_suffix("")), *CPU]) == 1
    assert "holds representations of other table, content" in capsys.readouterr().err
    assert len(list(interrupted.iterdir())) == 5


def test_a_damaged_block_is_named(
    interrupted: Path, run: Path, image_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = sorted(interrupted.glob("block-*"))[2]
    content = bytearray(block.read_bytes())
    content[-3] ^= 4
    block.write_bytes(content)
    command = [str(run), str(image_tree), str(interrupted.with_suffix("")), *CPU]
    assert embed(command) == 1
    assert f"{block} is damaged; remove it and run the same command again" in capsys.readouterr().err
    block.unlink()
    assert embed(command) == 0


def test_a_damaged_plan_is_said(
    interrupted: Path, run: Path, image_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = interrupted / "plan.json"
    plan.write_text(plan.read_text().replace('"images": 24', '"images": 25'))
    assert embed([str(run), str(image_tree), str(interrupted.with_suffix("")), *CPU]) == 1
    assert f"{plan} is damaged: it does not have its own digest; remove" in capsys.readouterr().err


def test_an_exported_folder_gives_the_features_of_its_run(run: Path, image_tree: Path, tmp_path: Path) -> None:
    assert export([str(run), "--output", str(tmp_path / "exported")]) == 0
    for name, encoder in (("run", run), ("exported", tmp_path / "exported")):
        assert embed([str(encoder), str(image_tree), str(tmp_path / f"{name}.npz"), *CPU]) == 0
    assert (tmp_path / "run.npz").read_bytes() == (tmp_path / "exported.npz").read_bytes()


def test_a_model_of_timm_with_weights_from_its_cache(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("timm")
    import timm

    name = "test_convnext.r160_in1k"
    model = timm.create_model("test_convnext").eval()
    cached_weights(name, model.state_dict(), tmp_path, monkeypatch)
    assert embed([f"timm:{name}", str(image_tree), str(tmp_path / "a.npz"), *CPU]) == 0
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg))
    found = read_embeddings(tmp_path / "a.npz")
    with Image.open(image_tree / found.path[5]) as image, torch.no_grad():
        expected = model.forward_head(model.forward_features(transform(image.convert("RGB"))[None]), pre_logits=True)
    np.testing.assert_allclose(found.h[5], expected[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{tree}", "{tmp}/a.npy"], "a.npy says no form; give a name that ends in .npz or .parquet"),
        (["{run}", "{tree}", "{tmp}/there.npz"], "there.npz is there already; remove it, or give another OUT"),
        (["{run}", "{tree}", "{tmp}/a.npz", "--workers", "0"], "workers=0 is too small"),
        (
            ["{tmp}", "{tree}", "{tmp}/a.npz"],
            "holds neither a run nor an exported encoder; give the folder of a run or",
        ),
        (
            ["{tmp}/no", "{tree}", "{tmp}/a.npz"],
            "no is not there; give the folder of a run or of an export, or timm:NAME",
        ),
        (["{run}", "{tmp}", "{tmp}/a.npz"], "no images"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], message: str, run: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.npz").touch()
    assert embed([a.format(run=run, tree=image_tree, tmp=tmp_path) for a in arguments]) in (1, 2)
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]


def _embeddings(n: int = 50) -> Embeddings:
    h = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    paths = np.array([f"{'ab'[row % 2]}/{row}.jpg" for row in range(n)])
    return Embeddings(h, paths, np.arange(n) * 2, Path("images"))


def test_neighbours_are_those_of_the_largest_cosine() -> None:
    embeddings = _embeddings()
    found = find(embeddings, ["6", "b/7.jpg"], 5)
    assert found.query.tolist() == [3, 7]
    h = torch.from_numpy(embeddings.h).double()
    for query, rows, similarity in zip(found.query, found.row, found.similarity, strict=True):
        cosine = torch.cosine_similarity(h, h[query][None])
        cosine[query] = -2
        best, row = cosine.topk(5)
        assert rows.tolist() == row.tolist()
        np.testing.assert_allclose(similarity, best, atol=1e-6)


def test_an_index_of_faiss_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("neighbours")
    embeddings = _embeddings(2000)
    exact = find(embeddings, ["0", "2", "400"], 10)
    monkeypatch.setattr(found_by, "EXACT", 1999)
    monkeypatch.setattr(found_by, "_exact", lambda *_: pytest.fail("all are compared"))
    monkeypatch.setattr(found_by, "_PROBES", 1000)
    assert np.array_equal(find(embeddings, ["0", "2", "400"], 10).row, exact.row)


def test_copies_of_the_query_come_first_and_it_does_not_itself() -> None:
    embeddings = _embeddings(6)
    same = replace(embeddings, h=np.repeat(embeddings.h[:1], 6, axis=0))
    found = find(same, ["8"], 3)
    assert 4 not in found.row[0]
    assert len(set(found.row[0].tolist())) == 3
    np.testing.assert_allclose(found.similarity, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("7", "query 7: no image has this index; give one up to 98"),
        ("a/7.jpg", "query a/7.jpg: no image has this path; the first one is a/0.jpg"),
        ("c", "query c: no image has this path"),
    ],
)
def test_a_query_that_is_no_image_is_said(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(_embeddings(), [query], 3)


def test_the_end_of_a_path_must_be_of_one() -> None:
    embeddings = replace(_embeddings(4), path=np.array(["x/a/1.jpg", "x/b/1.jpg", "x/b/2.jpg", "1.jpg"]))
    assert find(embeddings, ["a/1.jpg", "2.jpg", "1.jpg"], 1).query.tolist() == [0, 2, 3]
    embeddings.path[3] = "x/c/3.jpg"
    with pytest.raises(ConfigError, match="2 images end like this"):
        find(embeddings, ["1.jpg"], 1)


def test_the_command_prints_and_draws_them(
    run: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.npz"
    assert embed([str(run), str(image_tree), str(out), *CPU]) == 0
    name = read_embeddings(out).path[20]
    assert neighbours([str(out), "0", str(name), "--count", "4"]) == 0
    printed = capsys.readouterr().out
    assert f"nearest to {name}" in printed
    assert len([line for line in printed.splitlines() if ".jpg" in line and "nearest" not in line]) == 8
    with Image.open(tmp_path / "features.png") as picture:
        assert picture.width > picture.height > 200
    assert neighbours([str(out), "0", "--images", str(image_tree / "class_0")]) == 2
    assert "24 images were embedded, and these are 8 others; give --images the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no file of equimod embed, or it is damaged"), (b"PK\x03\x04", "or it is damaged")]
)
def test_a_file_of_others_is_said(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.npz", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        assert neighbours([str(tmp_path / name), "0"]) == 1
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert message in errors[0]
    np.savez(tmp_path / "b.npz", features=np.zeros(3))
    assert neighbours([str(tmp_path / "b.npz"), "0"]) == 1
    assert neighbours([str(tmp_path / "none.npz"), "0"]) == 2
