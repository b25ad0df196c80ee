"""Given weights: every kind of file, what is left out, what is refused in one line, and a resume that needs none."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from needs import needs
from small_runs import same_end
from timm_cache import cached_weights, found_in
from torch import Tensor

from equimod.models.encoder import build_encoder
from equimod.models.settings import EncoderSettings
from equimod.models.weights import load_weights
from equimod.train import run as training
from equimod.train.config import Config, ConfigError, read_recipe
from equimod.train.main import main
from equimod.train.weights import GivenWeights, given_weights

RESNET18 = EncoderSettings("resnet18", stem="imagenet")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return torchvision.models.resnet18().state_dict()


def _read(path: Path | str, **settings: Any) -> GivenWeights:
    config = Config(encoder=EncoderSettings("resnet18", "imagenet", weights=str(path), **settings))
    config, given = given_weights(config)
    assert given is not None
    assert config.encoder.weights_sha256 == given.sha256
    return given


@pytest.mark.parametrize(
    "write",
    [
        lambda tensors, path: path.write_bytes(safetensors.torch.save(tensors)),
        torch.save,
        lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
        lambda tensors, path: torch.save({"state_dict": tensors, "epoch": 3, "arch": "resnet18"}, path),
        lambda tensors, path: torch.save({"model": {f"module.{n}": t for n, t in tensors.items()}}, path),
    ],
    ids=["safetensors", "torch", "torch of old", "of a trainer", "of a trainer with DDP"],
)
def test_every_kind_of_file_gives_the_published_features(
    write: Callable[[dict[str, Tensor], Path], object], published: dict[str, Tensor], tmp_path: Path
) -> None:
    write(published, tmp_path / "weights")
    given = _read(tmp_path / "weights")
    assert given.sha256 == hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()
    encoder = build_encoder(RESNET18)
    load_weights(encoder, given.tensors, "weights")
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(published)
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder.eval()(images), theirs.eval()(images))
    assert given.note(encoder).endswith(f"(SHA-256 {given.sha256[:12]}), without fc.bias, fc.weight")


def test_counters_that_old_files_lack_stay_as_they_are(published: dict[str, Tensor]) -> None:
    encoder = build_encoder(RESNET18)
    load_weights(encoder, {n: t for n, t in published.items() if not n.endswith("num_batches_tracked")}, "old")
    assert torch.equal(encoder.conv1.weight, published["conv1.weight"])


def _wider(tensors: dict[str, Tensor]) -> None:
    tensors["conv1.weight"] = torch.zeros(64, 3, 3, 3)


def _integer(tensors: dict[str, Tensor]) -> None:
    tensors["bn1.bias"] = torch.zeros(64, dtype=torch.int64)


def _renamed(tensors: dict[str, Tensor]) -> None:
    for number in range(6):
        tensors[f"odd{number}"] = torch.zeros(1)
    del tensors["bn1.weight"]


def _infinite(tensors: dict[str, Tensor]) -> None:
    tensors["bn1.running_var"] = torch.full((64,), torch.inf)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_wider, r"of another shape: conv1.weight \(64,3,3,3\) for \(64,3,7,7\); give the weights of"),
        (_integer, r"of another shape: bn1.bias \(64\) int64 for \(64\);"),
        (_renamed, "missing: bn1.weight; not of this encoder: odd0, odd1, odd2, odd3 and 2 more;"),
        (_infinite, "not finite: bn1.running_var;"),
        (dict.clear, r"missing: bn1.bias, bn1.running_mean, bn1.running_var, bn1.weight and \d+ more;"),
    ],
)
def test_what_does_not_fit_is_listed_in_one_line_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], None], fault: str, published: dict[str, Tensor]
) -> None:
    encoder, tensors = build_encoder(RESNET18), dict(published)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    change(tensors)
    with pytest.raises(ConfigError, match=f"encoder.weights=FILE do not fit the encoder; {fault}") as caught:
        load_weights(encoder, tensors, "FILE")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class _Code:
    """What a pickle can hold that runs when it is read."""

    ran = False

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return setattr, (_Code, "ran", True)


def _truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: torch.save({"a": _Code()}, path), r"weights holds (\w+\.)?setattr, which is made by running"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(_Code())), "weights is neither|weights holds .*setattr"),
    "namespace": (
        lambda path: torch.save({"state_dict": {}, "args": argparse.Namespace()}, path),
        "weights holds argparse.Namespace, which is made by running code of the file; save the model's state_dict",
    ),
    "truncated": (_truncated, "weights is neither safetensors nor what torch.save wrote, or it is damaged"),
    "truncated safetensors": (
        lambda path: path.write_bytes(safetensors.torch.save({"a": torch.zeros(1000)})[:-100]),
        "weights is neither safetensors nor what torch.save wrote, or it is damaged",
    ),
    "text": (lambda path: path.write_text("lr: 3\n" * 100), "weights is neither safetensors nor"),
    "empty": (lambda path: path.write_bytes(b""), "weights is neither safetensors nor"),
    "list": (lambda path: torch.save([torch.zeros(1)], path), r"weights holds no weights by name; save a model's"),
    "nothing": (lambda path: torch.save({}, path), r"weights holds no weights by name; save a model's"),
    "other": (lambda path: torch.save({"a": torch.zeros(1), "b": 3}, path), "weights holds b, which is no tensor"),
    "folder": (lambda path: path.mkdir(), "weights cannot be read: it is no file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_one_line_and_runs_no_code(kind: str, tmp_path: Path) -> None:
    write, fault = WRONG[kind]
    write(tmp_path / "weights")
    with pytest.raises(ConfigError, match=fault) as caught:
        _read(tmp_path / "weights")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not _Code.ran


def test_a_file_of_another_digest_than_asked_for_is_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(published, tmp_path / "weights")
    sha256 = _read(tmp_path / "weights").sha256
    assert _read(tmp_path / "weights", weights_sha256=sha256).sha256 == sha256
    with pytest.raises(ConfigError, match=f"has the SHA-256 {sha256}, and encoder.weights_sha256 is {'0' * 64}; give"):
        _read(tmp_path / "weights", weights_sha256="0" * 64)
    with pytest.raises(ConfigError, match="weights_sha256 has no effect without"):
        EncoderSettings(weights_sha256=sha256)


@pytest.mark.parametrize("name", ["resnet18", "ResNet18_Weights.IMAGENET1K_V1"])
def test_weights_of_torchvision_are_those_in_torchs_cache(
    name: str, published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    path = tmp_path / "checkpoints" / torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    with pytest.raises(ConfigError, match=rf"torchvision:{name}: {path} is not there; put https.*\.pth there"):
        _read(f"torchvision:{name}")
    path.parent.mkdir()
    torch.save(published, path)
    assert _read(f"torchvision:{name}").path == path
    with pytest.raises(ConfigError, match="torchvision has none of that name; give a model such as resnet50"):
        _read("torchvision:resnet19")


def test_weights_of_timm_are_those_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("timm")
    found_in(tmp_path, monkeypatch)
    folder = tmp_path / "models--timm--test_vit.r160_in1k"
    with pytest.raises(ConfigError, match=rf"timm:test_vit: {folder}/model.safetensors is not there; download"):
        _read("timm:test_vit")
    path = cached_weights("test_vit.r160_in1k", {"a": torch.zeros(1)}, tmp_path, monkeypatch)
    assert _read("timm:test_vit").path == path
    assert _read("timm:test_vit.r160_in1k").path == path
    for name in ("test_vit.nothing", "nothing"):
        with pytest.raises(ConfigError, match=f"timm:{name}: timm has no weights of that name"):
            _read(f"timm:{name}")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for the encoder of `options`."""
    torch.manual_seed(11)
    encoder = build_encoder(EncoderSettings("resnet10", "imagenet", 8))
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({**encoder.state_dict(), "fc.weight": torch.zeros(3, 64)}, path)
    return path


@pytest.fixture
def run(file: Path, options: list[str], tmp_path: Path) -> tuple[Path, list[str]]:
    """A run of 12 steps from given weights, and its options."""
    given = Path(shutil.copy(file, tmp_path / "weights.pth"))
    options = [*options, "--output", str(tmp_path / "run"), "--encoder.weights", str(given)]
    options += ["--log.checkpoint-every", "7"]
    assert main(options) == 0
    return tmp_path / "run", options


def test_a_run_starts_from_them_in_every_encoder_and_says_so(
    file: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch.load(file, weights_only=True)
    states, original = [], training.build_train_state

    def build_train_state(*arguments: Any) -> Any:
        state = original(*arguments)
        states.append({name: value.clone() for name, value in state.model.state_dict().items()})
        return state

    monkeypatch.setattr(training, "build_train_state", build_train_state)
    byol = ["--method", "byol", "--dataset", "shapes", "--byol.hidden", "16", "--epochs", "2", "--batch-size", "8"]
    byol += [*options[2:], "--encoder.arch", "resnet10", "--encoder.width", "8", "--optim.warmup-epochs", "1"]
    assert main([*byol, "--output", str(tmp_path / "run"), "--encoder.weights", str(file)]) == 0
    for name in ("encoder", "method.target_encoder"):
        assert all(torch.equal(states[0][f"{name}.{key}"], expected[key]) for key in expected if key != "fc.weight")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"weights from {file} (SHA-256 {sha256[:12]}), without fc.weight" in capsys.readouterr().out
    assert read_recipe(tmp_path / "run" / "config.yaml").encoder.weights_sha256 == sha256


def test_a_resume_needs_no_file_and_ends_as_it_would_have(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, options = run
    (tmp_path / "weights.pth").unlink()
    start = ["--resume", str(folder / "checkpoints" / "step-00000007"), "--output", str(tmp_path / "resumed")]
    assert main([*options, *start]) == 0
    assert same_end(folder, tmp_path / "resumed")
    before, after = (read_recipe(path / "config.yaml").encoder for path in (folder, tmp_path / "resumed"))
    assert before.weights_sha256 is not None
    assert after == before


def test_a_resume_with_another_file_is_refused_and_a_moved_one_is_the_same(
    run: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, options = run
    moved, other = tmp_path / "moved.pth", tmp_path / "other.pth"
    shutil.move(tmp_path / "weights.pth", moved)
    shutil.copy(folder / "encoder.safetensors", other)
    where = options.index("--encoder.weights")
    for given, code in ((["--encoder.weights", str(other)], 2), ([], 2), (["--encoder.weights", str(moved)], 0)):
        capsys.readouterr()
        assert main([*options[:where], *given, *options[where + 2 :], "--resume", "auto"]) == code
        error = capsys.readouterr().err
        assert error.count("\n") == (code != 0)
        assert code == 0 or "with another configuration: encoder.weights_sha256=" in error


def test_a_run_without_them_is_no_run_with_some_that_are_gone(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*options, "--output", str(tmp_path / "run")]
    gone = ["--encoder.weights", str(tmp_path / "gone.pth"), "--resume", "auto"]
    assert main([*options, *gone]) == 2
    assert "gone.pth is not there; give the path of a file" in capsys.readouterr().err
    assert main(options) == 0
    assert main([*options, *gone]) == 2
    assert "encoder.weights_sha256=unknown (was None)" in capsys.readouterr().err


def test_weights_that_do_not_fit_end_a_run_before_it_writes(
    file: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ["--encoder.width", "16", "--output", str(tmp_path / "run"), "--encoder.weights", str(file)]
    assert main([*options, *wide]) == 2
    error = capsys.readouterr().err
    assert f"encoder.weights={file} do not fit the encoder; of another shape: bn1.bias (8) for (16)" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
