"""What stands beside a method or without one: E-SSL, the online probe, EquiMod alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tv
from safetensors.torch import load_file
from torch import Tensor, nn

from equimod.models.encoder import build_encoder
from equimod.models.essl import ESSL, rotations
from equimod.models.probe import OnlineProbe
from equimod.models.settings import EncoderSettings, EquiModSettings, ESSLSettings, NoneSettings, SimCLRSettings
from equimod.models.ssl import SSL, build_ssl
from equimod.pipelines.params import Standardizer
from equimod.train.config import RECIPES
from equimod.train.main import main
from equimod.train.report import read_events

N, P = 12, 5
ENCODER = EncoderSettings("resnet10", width=8)


def _batch() -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    images = torch.randn(2 * N, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    t_i, t_j = torch.randn(2, N, P, generator=torch.Generator().manual_seed(2))
    return images, (t_i, t_j), torch.arange(N) % 3


def _simclr(probe_classes: int | None = None, essl: ESSLSettings | None = None) -> SSL:
    torch.manual_seed(0)
    return build_ssl("simclr", ENCODER, SimCLRSettings((16,), 8), essl=essl, probe_classes=probe_classes)


def test_rotations_are_quarter_turns_and_labelled_by_their_number() -> None:
    images = torch.rand(2, 3, 8, 8)
    for turn, turned in enumerate(rotations(images).chunk(4)):
        torch.testing.assert_close(turned, tv.rotate(images, 90.0 * turn))


def test_the_rotation_loss_is_the_cross_entropy_of_the_turns() -> None:
    torch.manual_seed(0)
    encoder, view = build_encoder(ENCODER).eval(), torch.rand(N, 3, 16, 16)
    essl = ESSL(encoder.feature_dim, ESSLSettings(hidden=(16,)))
    losses = [
        F.cross_entropy(essl.predictor(encoder(tv.rotate(view, 90.0 * turn))), torch.full((N,), turn))
        for turn in range(4)
    ]
    torch.testing.assert_close(essl(encoder, view), torch.stack(losses).mean())


def test_rotated_views_can_be_smaller() -> None:
    encoder = build_encoder(ENCODER)
    seen: list[tuple[int, ...]] = []
    encoder.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    ESSL(encoder.feature_dim, ESSLSettings(hidden=(), size=8))(encoder, torch.rand(N, 3, 16, 16))
    assert seen == [(4 * N, 3, 8, 8)]


def test_the_predictor_is_that_of_the_authors_code() -> None:
    layers = list(ESSL(5, ESSLSettings()).predictor)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.LayerNorm, nn.ReLU] * 2 + [nn.Linear]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [2048, 2048, 4]


def test_the_rotation_adds_its_weighted_loss_to_any_method() -> None:
    losses = _simclr(essl=ESSLSettings(weight=0.3, hidden=(16,)))(*_batch())
    torch.testing.assert_close(losses["loss"], losses["invariance"] + 0.3 * losses["rotation"])
    alone = _simclr()(*_batch())
    torch.testing.assert_close(losses["invariance"], alone["invariance"])


def test_equimod_alone_is_its_weighted_loss() -> None:
    standardizer = Standardizer(torch.zeros(P), torch.ones(P))
    ssl = build_ssl("none", ENCODER, NoneSettings(), EquiModSettings(0.5, projector=(8,)), standardizer)
    views, encodings, label = _batch()
    losses = ssl(torch.cat([views[:N] + 1, views]), encodings, label)
    assert float(losses["invariance"]) == 0
    torch.testing.assert_close(losses["loss"], 0.5 * losses["equivariance"])
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in ssl.parameters())


def test_the_probe_changes_neither_the_loss_nor_the_gradient_of_anything_else() -> None:
    with_probe, without = _simclr(probe_classes=3), _simclr()
    losses, expected = with_probe(*_batch())["loss"], without(*_batch())["loss"]
    assert torch.equal(losses, expected)
    losses.backward()
    expected.backward()
    for name, parameter in without.named_parameters():
        other = with_probe.get_parameter(name)
        assert torch.equal(other, parameter)
        assert other.grad is not None
        assert parameter.grad is not None
        assert torch.equal(other.grad, parameter.grad)
    assert with_probe.probe is not None
    assert with_probe.probe.classifier.weight.grad is not None
    assert with_probe.probe.classifier.weight.grad.abs().max() > 0


def test_the_probe_learns_what_is_there_to_learn() -> None:
    torch.manual_seed(0)
    probe, centres = OnlineProbe(8, 3), torch.randn(3, 8)
    optimizer = torch.optim.SGD(probe.parameters(), lr=1.0)
    label = torch.arange(60) % 3
    accuracies = []
    for _ in range(10):
        h = centres[label] + 0.1 * torch.randn(60, 8)
        loss, top1 = probe((h, h), label)
        accuracies.append(float(top1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracies[0] == pytest.approx(100 / 3)
    assert accuracies[-1] == 100


SMALL = ["--config", str(RECIPES / "simclr_cifar10_cpu.yaml"), "--log.every", "1"]
SMALL += ["--epochs", "2", "--batch-size", "8", "--encoder.width", "8"]


def _train(image_tree: Path, run: Path, *options: str) -> Path:
    data = ["--data", str(image_tree), "--val", str(image_tree)]
    assert main([*SMALL, *data, "--output", str(run), *options]) == 0
    return run


def test_a_run_with_a_probe_logs_its_accuracy_and_ends_with_the_same_encoder(image_tree: Path, tmp_path: Path) -> None:
    small = ("--simclr.hidden", "16")
    with_probe = _train(image_tree, tmp_path / "with", *small, "--online-probe")
    without = _train(image_tree, tmp_path / "without", *small)
    top1 = [event["probe_top1"] for event in read_events(with_probe / "metrics.jsonl") if event["event"] == "step"]
    assert len(top1) == 6
    assert all(0 <= value <= 100 for value in top1)
    encoders = [load_file(run / "encoder.safetensors") for run in (with_probe, without)]
    assert all(torch.equal(weight, encoders[1][name]) for name, weight in encoders[0].items())


def test_everything_trains_at_once_and_rotation_is_logged(image_tree: Path, tmp_path: Path) -> None:
    run = _train(
        image_tree,
        tmp_path / "all",
        *["--method", "none", "--equimod", "--essl", "--online-probe", "--rotation.hidden", "16"],
        "--precision",
        "fp32",
    )
    (*_, last) = (event for event in read_events(run / "metrics.jsonl") if event["event"] == "step")
    assert last["loss"] == pytest.approx(last["equivariance"] + 0.4 * last["rotation"], rel=1e-5)
