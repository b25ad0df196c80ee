"""How others build the architecture of an encoder, as Python: for hubconf.py, the model card and timm's config.json."""

from __future__ import annotations

from typing import Any

from equimod.models.encoder import TRUNKS
from equimod.models.settings import EncoderSettings

_WIDTH = 64  # of the published networks


def imports_of(settings: EncoderSettings) -> list[str]:
    """Lines that import what `building` uses."""
    if settings.timm_name is not None:
        return ["import timm"]
    return ["from torch import nn", "from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet"]


def building(settings: EncoderSettings, image_size: int) -> list[str]:
    """Lines that make `model`, from images (N,3,S,S) to representations (N,F), with weights that are drawn."""
    if settings.timm_name is not None:
        arguments = "".join(f", {key}={value!r}" for key, value in timm_arguments(settings, image_size).items())
        return [f"model = timm.create_model({settings.timm_name!r}, num_classes=0{arguments})"]
    trunk, depths = TRUNKS[settings.arch]
    block = trunk.__name__
    lines = [f"model = ResNet({block}, {list(depths)})", "model.fc = nn.Identity()"]
    width = settings.width or _WIDTH
    stem = "3, stride=1, padding=1" if settings.stem == "cifar" else "7, stride=2, padding=3"
    if settings.stem == "cifar" or width != _WIDTH:
        lines.append(f"model.conv1 = nn.Conv2d(3, {width}, {stem}, bias=False)")
    if settings.stem == "cifar":
        lines.append("model.maxpool = nn.Identity()")
    if width != _WIDTH:
        lines += [f"model.bn1 = nn.BatchNorm2d({width})", f"model.inplanes = {width}"]
        for stage, depth in enumerate(depths):
            stride = ", stride=2" if stage else ""
            lines.append(f"model.layer{stage + 1} = model._make_layer({block}, {width * 2**stage}, {depth}{stride})")
    return lines


def timm_arguments(settings: EncoderSettings, image_size: int) -> dict[str, Any]:
    """Arguments of timm.create_model beside the name, for the encoder of `settings`."""
    import timm

    if settings.arch == "resnet10":
        return {"layers": list(TRUNKS[settings.arch][1])}
    config = timm.models.get_pretrained_cfg(timm_name(settings))
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def timm_name(settings: EncoderSettings) -> str:
    """What timm calls the architecture."""
    return settings.timm_name or {"resnet10": "resnet18"}.get(settings.arch, settings.arch)


def is_published(settings: EncoderSettings) -> bool:
    """Whether the architecture is one that torchvision and timm have, in stem and width."""
    return settings.timm_name is not None or (settings.stem == "imagenet" and settings.width == _WIDTH)
