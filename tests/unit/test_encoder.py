"""The encoder against torchvision's ResNets, and what is added to them: the CIFAR stem, the width, ResNet-10."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from equimod.models.encoder import build_encoder
from equimod.models.settings import Arch, EncoderSettings


def _without_classifier(resnet: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in resnet.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("training", [False, True])
def test_published_weights_load_and_give_the_same_representation(arch: Arch, training: bool) -> None:
    torch.manual_seed(0)
    published = torchvision.models.get_model(arch)
    encoder = build_encoder(EncoderSettings(arch, stem="imagenet"))
    encoder.load_state_dict(_without_classifier(published))
    published.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    expected, h = published.train(training)(images), encoder.train(training)(images)
    assert torch.equal(h, expected)
    assert h.shape == (2, encoder.feature_dim)


def test_resnet10_has_torchvisions_key_names() -> None:
    expected = ResNet(BasicBlock, [1, 1, 1, 1])
    encoder = build_encoder(EncoderSettings("resnet10", stem="imagenet"))
    assert encoder.state_dict().keys() == _without_classifier(expected).keys()
    encoder.load_state_dict(_without_classifier(expected))


@pytest.mark.parametrize(
    ("arch", "width", "feature_dim"),
    [("resnet10", 8, 64), ("resnet18", 64, 512), ("resnet34", 32, 256), ("resnet50", 64, 2048), ("resnet50", 16, 512)],
)
def test_feature_dim_is_that_of_the_representation(arch: Arch, width: int, feature_dim: int) -> None:
    encoder = build_encoder(EncoderSettings(arch, width=width)).eval()
    assert encoder.feature_dim == feature_dim
    assert encoder(torch.zeros(1, 3, 8, 8)).shape == (1, feature_dim)


def test_width_scales_every_channel_but_the_image() -> None:
    full = build_encoder(EncoderSettings("resnet50")).state_dict()
    quarter = build_encoder(EncoderSettings("resnet50", width=16)).state_dict()
    assert full.keys() == quarter.keys()
    for name, value in full.items():
        if name == "conv1.weight":
            expected = [16, *value.shape[1:]]
        elif value.ndim == 4:
            expected = [value.shape[0] // 4, value.shape[1] // 4, *value.shape[2:]]
        else:
            expected = [size // 4 for size in value.shape]
        assert list(quarter[name].shape) == expected, name


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("imagenet", 8)])
def test_cifar_stem_keeps_the_resolution(stem: str, side: int) -> None:
    encoder = build_encoder(EncoderSettings("resnet10", stem=stem, width=8))
    sides: list[int] = []
    encoder.layer1.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    encoder(torch.randn(2, 3, 32, 32))
    assert sides == [side]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_initialisation_is_torchvisions_with_residual_branches_at_zero(arch: Arch) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(arch))
    expected = torchvision.models.get_model(arch, zero_init_residual=True)
    for name, value in _without_classifier(expected).items():
        ours = encoder.state_dict()[name]
        if value.ndim < 4:
            assert torch.equal(ours, value), name
        else:
            assert ours.std() == pytest.approx(math.sqrt(2 / (ours.shape[0] * ours[0, 0].numel())), rel=0.1), name
            assert abs(ours.mean()) < 5 * ours.std() / math.sqrt(ours.numel()), name
