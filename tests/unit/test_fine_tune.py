"""Fine-tuning: which images it takes, that an interruption changes nothing, and that it is plain SGD."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.records import open_records
from equimod.train.config import ConfigError, read_run
from equimod.train.evaluation.features import FrozenEncoder, extract, top_k
from equimod.train.evaluation.fine_tune import FineTuneSettings, chosen, fine_tune
from equimod.train.evaluation.kept_training import FOLDER
from equimod.train.evaluation.trained_run import TrainedRun, open_trained_run
from equimod.train.main import main as train

SMALL = FineTuneSettings(batch_size=8, lr=0.02)


@pytest.fixture(scope="module")
def run(options: list[str], image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fine-tune") / "run"
    assert train([*options, "--epochs", "2", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def trained(run: Path, image_tree: Path, tmp_path: Path) -> TrainedRun:
    config = replace(read_run(run), data=(image_tree,), val=(image_tree,))
    return open_trained_run(run, config, None, seed=0, workers=1, output=tmp_path)


def test_shares_have_as_many_of_every_class_and_hold_each_other(image_tree: Path) -> None:
    records = open_records(image_tree)  # 8 of each of 3 classes
    found = {percent: chosen(records, percent, seed=0) for percent in (1, 10, 50, 100)}
    for percent, each in ((1, 1), (10, 1), (50, 4), (100, 8)):
        assert np.bincount(records.label[found[percent]]).tolist() == [each] * 3
    assert set(found[1]) <= set(found[50]) <= set(found[100])
    assert found[100].tolist() == list(range(24))
    assert not np.array_equal(chosen(records, 50, seed=1), found[50])


def test_a_class_without_images_is_refused(image_tree: Path) -> None:
    records = open_records(image_tree)
    records.classes = [*records.classes, "none"]
    with pytest.raises(ConfigError, match="--fine-tune has no training image of 'none'; give others with --train"):
        chosen(records, 10, seed=0)


@pytest.fixture
def ended(trained: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The encoders at the end of each fine-tuning, as they are evaluated."""
    found: list[dict[str, Tensor]] = []
    original = FrozenEncoder.__init__

    def keep(self: FrozenEncoder, encoder: Encoder, autocast: torch.dtype | None) -> None:
        found.append({name: value.clone() for name, value in encoder.state_dict().items()})
        original(self, encoder, autocast)

    assert trained.encoder is not None  # made before, and not counted
    monkeypatch.setattr(FrozenEncoder, "__init__", keep)
    return found


def test_it_is_plain_sgd_on_the_whole_network(trained: TrainedRun, ended: list[dict[str, Tensor]]) -> None:
    before = {name: value.clone() for name, value in trained.trunk.state_dict().items()}
    found = dict(fine_tune(trained, 100, 3, SMALL))
    encoder = deepcopy(trained.trunk).train()
    head = torch.nn.Linear(encoder.feature_dim, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    sgd = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.02, momentum=0.9, nesterov=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 9)
    policy = trained.config.evaluation_policy
    pipeline = build_pipeline(trained.train, policy, batch_size=8, seed=0, with_x=False, workers=1)
    for epoch in range(3):
        for batch in pipeline.epoch(epoch):
            sgd.zero_grad()
            F.cross_entropy(head(encoder(batch.views[0].image)), batch.label).backward()
            sgd.step()
            decay.step()
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(ended[0][name], value, rtol=1e-4, atol=1e-6)
    val = extract(FrozenEncoder(encoder, None), trained.val, policy.x, trained.train.classes, workers=1)
    with torch.no_grad():
        assert found == {f"fine_tune_100_top{k}": top_k(head(val.h), val.label, k) for k in (1, 5)}
    assert all(torch.equal(value, before[name]) for name, value in trained.trunk.state_dict().items())


class _Cut(Exception):
    pass


def _cut_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pipeline.epoch

    def epoch(self: Pipeline, epoch: int, start_step: int = 0) -> Iterator[object]:
        for step, batch in enumerate(original(self, epoch, start_step)):
            if (epoch, step) == (number, 1):
                raise _Cut
            yield batch

    monkeypatch.setattr(Pipeline, "epoch", epoch)


def test_an_interruption_changes_no_bit(
    trained: TrainedRun, ended: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = dict(fine_tune(trained, 100, 4, SMALL))
    with monkeypatch.context() as cut:
        _cut_in_epoch(2, cut)
        with pytest.raises(_Cut):
            dict(fine_tune(trained, 100, 4, SMALL))
    assert (tmp_path / FOLDER / "fine-tuning-100.safetensors").exists()
    epochs: list[int] = []
    original = Pipeline.epoch
    monkeypatch.setattr(Pipeline, "epoch", lambda self, e, s=0: epochs.append(e) or original(self, e, s))
    assert dict(fine_tune(trained, 100, 4, SMALL)) == whole
    assert epochs[:2] == [2, 3]
    assert len(ended) == 2
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("damage", ["other settings", "other images", "cut"])
def test_what_does_not_belong_to_it_is_not_gone_on_with(
    damage: str, trained: TrainedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    with monkeypatch.context() as cut:
        _cut_in_epoch(1, cut)
        with pytest.raises(_Cut):
            dict(fine_tune(trained, 100, 2, SMALL))
    file = tmp_path / FOLDER / "fine-tuning-100.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    if damage == "other images":
        first, second, *_ = sorted((source / "class_0").iterdir())
        shutil.copy(first, second)
        trained = replace(trained, train=open_records(source))
    settings = replace(SMALL, lr=0.01) if damage == "other settings" else SMALL
    epochs: list[int] = []
    original = Pipeline.epoch
    monkeypatch.setattr(Pipeline, "epoch", lambda self, e, s=0: epochs.append(e) or original(self, e, s))
    dict(fine_tune(trained, 100, 2, settings))
    assert epochs[:2] == [0, 1]
