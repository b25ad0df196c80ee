"""The benchmark's arithmetic, its command line and what its result holds, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from equimod.benchmarks import benchmark
from equimod.benchmarks.augmenters import chained
from equimod.benchmarks.benchmark import summarise
from equimod.benchmarks.loaders import RepeatedRecords, _PillowViews
from equimod.benchmarks.measure import Round
from equimod.benchmarks.throughput import Loader, main
from equimod.pipelines import ops
from equimod.pipelines.params import draw
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records

MIB = 2**20


def _turn(images_per_second: float, cpu_ms: float = 1.0, peak_bytes: int = MIB) -> Round:
    seconds = 100 / images_per_second
    return Round(100, seconds, cpu_seconds=cpu_ms / 10, peak_bytes=peak_bytes, first_batch_seconds=seconds / 4)


def test_summary_of_known_rounds() -> None:
    rounds = [
        {"decode": _turn(1000, 1.0), "native": _turn(600, 2.0, 3 * MIB), "torchvision": _turn(200, 6.0)},
        {"decode": _turn(800, 1.5), "native": _turn(400, 2.5, 4 * MIB), "torchvision": _turn(100, 8.0)},
    ]
    pairs = Loader(records=Path()).pairs(["native", "torchvision", "decode"])
    summary = summarise(rounds, {name: _turn(50) for name in rounds[0]}, pairs)
    assert summary["ratios"]["native/decode"]["median"] == pytest.approx((0.6 + 0.5) / 2)
    assert summary["ratios"]["native/torchvision"]["median"] == pytest.approx((3.0 + 4.0) / 2)
    native = summary["contenders"]["native"]
    assert native["images_per_second"]["median"] == pytest.approx(500)
    assert native["cpu_ms_per_image"]["median"] == pytest.approx(2.25)
    assert native["peak_bytes"] == 4 * MIB
    assert native["start_seconds"] == pytest.approx(100 / 50 / 4)
    assert native["first_batch_seconds"] == pytest.approx((100 / 600 + 100 / 400) / 2 / 4)
    assert summary["rounds"][1]["torchvision"]["seconds"] == pytest.approx(1.0)


@pytest.mark.parametrize(("images", "positions"), [(4, [0, 6, 12, 18]), (26, [*range(24), 0, 1])])
def test_a_round_spreads_over_the_records_or_repeats_them(image_tree: Path, images: int, positions: list[int]) -> None:
    records = open_records(image_tree)
    taken = RepeatedRecords(records, images)
    assert len(taken) == images
    assert taken.index.tolist() == list(range(images))
    assert np.array_equal(taken.size, records.size[positions])
    assert np.array_equal(taken.label, records.label[positions])
    assert [taken.read(i) for i in range(images)] == [records.read(position) for position in positions]


def test_augmented_views_are_normalised_and_crops_are_not(image_tree: Path) -> None:
    records, policy = open_records(image_tree), POLICIES["byol_cifar10"]
    for augmented, dtype in ((False, torch.uint8), (True, torch.float32)):
        x, *views = _PillowViews(records, policy, augmented)[3][:3]
        assert [(image.shape, image.dtype) for image in (x, *views)] == [((3, 32, 32), dtype)] * 3


def test_operators_one_by_one_give_the_same_views() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for policy in POLICIES["byol_cifar10"].views:
        params = draw(policy, np.full((64, 2), 32), np.arange(64), seed=0, epoch=0, view=0)
        distance = (chained(images, params, policy) - ops.apply(images, params, policy)).abs()
        assert (distance > 2e-5).float().mean() < 1e-4  # of values that rounding brings over solarize's threshold


@pytest.mark.ci
def test_whole_views_are_compared_by_their_cpu_time(image_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--policy=byol_cifar10", "--batch-size=8", "--workers=1", "--rounds=1", "--images=16"]
    assert main(["views", f"--records={image_tree}", *options]) == 0
    assert "CPU-ms: native/torchvision" in capsys.readouterr().out


def test_command_writes_a_complete_result(image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "loader.json"
    options = {"policy": "simclr_cifar10", "batch-size": 8, "workers": 1, "rounds": 2, "images": 20, "output": output}
    options["model-rate"] = 500
    arguments = [f"--{name}={value}" for name, value in options.items()]
    assert main(["loader", f"--records={image_tree}", *arguments]) == 0
    assert "native/torchvision" in capsys.readouterr().out

    result = json.loads(output.read_text())
    assert result["benchmark"] == "loader"
    assert result["settings"] == {
        "records": str(image_tree),
        "policy": "simclr_cifar10",
        "batch_size": 8,
        "workers": 1,
        "images": 16,
        "augmented": False,
        "images_in_records": 24,
        "model_rate": 500,
    }
    assert Image.open(output.with_suffix(".png")).size[0] > 500
    native = result["contenders"]["native"]
    assert native["cores"] == pytest.approx(500 * native["cpu_ms_per_image"]["median"] / 1000)
    assert set(result["versions"]) == {"python", "equimod", "torch", "torchvision", "pillow", "simplejpeg", "numpy"}
    assert set(result["machine"]) == {"cpu", "cores", "memory_gib", "system"}
    assert {"date", "command", "commit"} <= set(result)
    assert len(result["rounds"]) == 2
    for turns in result["rounds"]:
        assert set(turns) == {"native", "torchvision", "decode"}
        for turn in turns.values():
            assert turn["images"] == 16
            assert min(turn["seconds"], turn["cpu_seconds"]) > 0
            assert 0 < turn["first_batch_seconds"] < turn["seconds"]
            assert turn["peak_bytes"] > 50 * MIB  # torch alone takes more
    # The workers' processor time and memory count too, or the DataLoader would cost next to nothing.
    peaks = {name: result["contenders"][name]["peak_bytes"] for name in ("native", "torchvision")}
    assert peaks["torchvision"] > 1.3 * peaks["native"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--policy=simclr"], 2, "policy=simclr is not known; give one of"),
        (["--backends=native,kornia"], 2, "'kornia' is not known; give some of native,dali"),
        (["--rounds=0"], 2, "rounds=0; give 1 or more"),
        (["--workers=0"], 2, "workers=0; give 1 or more"),
        (["--images=32"], 2, "images=32 is less than a batch; give 64 or more"),
        (["--output=missing/loader.json"], 2, "its folder does not exist"),
        (["--output=loader.txt"], 2, "does not end in .json"),
        (["--model-rate=0"], 2, "model_rate=0.0; give 1 or more"),
        (["--records=missing"], 1, "missing does not exist; give a folder"),
    ],
)
def test_bad_input_gives_one_clear_line(
    image_tree: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["loader", f"--records={image_tree}", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_error_of_a_dataloader_worker_gives_one_line(
    image_tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(
            "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
            "OSError: image is truncated\n"
        )

    monkeypatch.setattr(benchmark, "interleave", broken)
    assert main(["loader", f"--records={image_tree}"]) == 1
    assert capsys.readouterr().err == "error: OSError: image is truncated\n"


@pytest.mark.ci
def test_training_is_timed_beside_its_step_and_its_pipeline(image_tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "train.json"
    trainer = ["--method=simclr", "--equimod", "--dataset=cifar10", f"--data={image_tree}", "--batch-size=8"]
    small = ["--encoder.width=8", "--system.device=cpu", "--epochs=20"]
    assert main(["train", "--rounds=2", "--batches=4", f"--output={output}", "--", *trainer, *small]) == 0
    result = json.loads(output.read_text())
    assert set(result["contenders"]) == {"step", "pipeline", "train"}
    assert [turn["images"] for turns in result["rounds"] for turn in turns.values()] == [32] * 6  # beyond an epoch of 3
    speeds = [{name: 32 / turn["seconds"] for name, turn in turns.items()} for turns in result["rounds"]]
    shares = [turns["train"] / min(turns["step"], turns["pipeline"]) for turns in speeds]
    assert result["ratios"]["train/slower of both"]["median"] == pytest.approx(sum(shares) / 2)
    assert (result["settings"]["method"], result["settings"]["equimod"]) == ("simclr", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step"], "--method is missing; give --method simclr"),
        (["step", "--", "--method=simclr", "--dataset=imagenet"], "data is missing"),
        (["train", "--batches=0", "--", "--method=simclr"], "batches=0; give 1 or more"),
        (["augment", "--operators=numpy"], "'numpy' is not known; give some of equimod,one_by_one"),
        (["augment", "--images=8"], "images=8 is less than a batch"),
    ],
)
def test_bad_input_to_the_other_benchmarks_gives_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
