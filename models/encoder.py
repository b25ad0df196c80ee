"""The encoder f: what every one has, and torchvision's ResNet trunks without the classifier, with a CIFAR stem and a
width factor.

The ResNets are built from torchvision's own blocks under torchvision's own names, so that the state dict of a published
ResNet loads but for its `fc`, and the encoder trained here loads into torchvision. Composed rather than
derived from `torchvision.models.ResNet`, whose constructor fixes the width and the stem.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from equimod.models.settings import RESNETS, ConfigError, EncoderSettings

_Block = type[BasicBlock] | type[Bottleneck]
TRUNKS: dict[str, tuple[_Block, tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
"""Block and depths of the stages of our ResNets."""


class Encoder(nn.Module):
    """From images (N,3,S,S) to representations h (N, feature_dim), initialised from torch's generator."""

    feature_dim: int

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that have no weight decay, beside biases and norms."""
        return set()


class ResNet(Encoder):
    """A ResNet of torchvision's key names."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        block, depths = TRUNKS[settings.arch]
        width = settings.width or 64
        if settings.stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(block, width, width, depths[0], stride=1)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, depths[2], stride=2)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = 8 * width * block.expansion
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Representations h (N, feature_dim) of images (N,3,S,S)."""
        h = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return torch.flatten(self.avgpool(h), 1)


def require_arch(settings: EncoderSettings) -> None:
    """Raise ConfigError where there is no such architecture here. Builds none."""
    if settings.timm_name is not None:
        _timm_encoder(settings).require_timm_model(settings)


def build_encoder(settings: EncoderSettings, image_size: int = 224) -> Encoder:
    """The encoder that settings describe, for images of `image_size` pixels. Raises ConfigError where there is none."""
    if settings.timm_name is None:
        return ResNet(settings)
    encoder: Encoder = _timm_encoder(settings).timm_encoder(settings, image_size)
    return encoder


def resized_weights(settings: EncoderSettings, encoder: Encoder, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights of an encoder with these settings for the size of images that `encoder` is for.

    The position embedding of a ViT is resampled as timm does it; of everything else, weights fit any size or none.
    """
    if settings.timm_name is None:
        return weights
    fitting: Mapping[str, Tensor] = _timm_encoder(settings).resized(encoder, weights)
    return fitting


def _timm_encoder(settings: EncoderSettings) -> Any:
    """The module for models of timm. Raises ConfigError without timm."""
    try:
        from equimod.models import timm_encoder  # only now: timm takes seconds to import, and need not be there
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"encoder.arch={settings.arch} is none of {', '.join(RESNETS)}, and models of timm need it ({error}): "
            "pip install 'equimod[timm]'"
        ) from error
    return timm_encoder


def _stage(block: _Block, inplanes: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))
    first = block(inplanes, planes, stride, downsample)
    return nn.Sequential(first, *(block(outplanes, planes) for _ in range(depth - 1)))


def _initialise(encoder: ResNet) -> None:
    """As torchvision with zero_init_residual=True: every residual block starts as its shortcut (official code)."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
