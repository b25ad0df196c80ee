"""The benchmark of large batches, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from equimod.benchmarks.large_batch import Chunks, main
from equimod.models.losses import log_sum_exp


@pytest.mark.ci
def test_a_step_is_measured_for_every_number_of_chunks(image_tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "grad_cache.json"
    trainer = ["--method=simclr", "--equimod", "--dataset=cifar10", f"--data={image_tree}", "--batch-size=8"]
    small = ["--encoder.width=8", "--system.device=cpu", "--epochs=20"]
    assert main(["grad-cache", "--rounds=1", f"--output={output}", "--chunks", "1", "4", "--", *trainer, *small]) == 0
    result = json.loads(output.read_text())
    assert list(result["contenders"]) == ["1 chunk", "4 chunks"]
    assert list(result["ratios"]) == ["4 chunks/1 chunk"]
    assert all(turn["images"] == 8 for turn in result["rounds"][0].values())
    apart = result["gradients_apart"]
    assert apart["1 chunk"] == 0 < 0.01 < apart["4 chunks"]
    (table,) = Chunks.rows(result)
    assert [row[-1] for row in table.rows] == [f"{distance:.2f}" for distance in apart.values()]


@pytest.mark.ci
def test_a_loss_is_measured_for_every_share(tmp_path: Path) -> None:
    output = tmp_path / "loss.json"
    assert main(["loss", "--rounds=1", f"--output={output}", "--batch=64", "--ranks", "4", "16"]) == 0
    result = json.loads(output.read_text())
    shares = ["share of 4 ranks", "share of 16 ranks"]
    assert list(result["contenders"]) == ["full matrix", "embeddings alone", *shares]
    assert list(result["ratios"]) == [f"{share}/full matrix" for share in shares]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--ranks", "3"], "ranks=3 does not divide batch=4096"),
        (["grad-cache", "--chunks", "0", "--", "--method=simclr"], "grad_cache=0 is too small"),
    ],
)
def test_a_wrong_setting_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_no_tensor_of_the_size_of_the_whole_matrix_is_made() -> None:
    n = 3000
    z = F.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        log_sum_exp(z, z.detach(), (torch.arange(n),)).sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 4 * n * 1000 < largest < 4 * n * n / 2


def test_chunks_that_do_not_divide_the_batch_are_one_line(image_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = ["--method=simclr", "--dataset=cifar10", f"--data={image_tree}", "--batch-size=8", "--encoder.width=8"]
    assert main(["grad-cache", "--rounds=1", "--chunks", "3", "--", *trainer, "--system.device=cpu"]) == 2
    error = capsys.readouterr().err
    assert error == "error: grad_cache=3 does not divide the 8 images of a rank; give a divisor of 8\n"
