"""Models of timm as encoders, without their classifiers and under timm's key names (extra `timm`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from equimod.models.encoder import Encoder
from equimod.models.settings import RESNETS, ConfigError, EncoderSettings
from equimod.pipelines.errors import nearest


def require_timm_model(settings: EncoderSettings) -> str:
    """The name of the model. Raises ConfigError where this timm has none of that name."""
    name = settings.timm_name or ""
    if timm.is_model(name):
        return name
    hint = nearest(name, [*RESNETS, *timm.list_models()])
    raise ConfigError(
        f"encoder.arch={settings.arch} is none of {', '.join(RESNETS)}, and timm {timm.__version__} has no model of "
        f"that name{hint}; timm.list_models() has the names"
    )


def timm_encoder(settings: EncoderSettings, image_size: int) -> Encoder:
    """The model of timm that `settings.arch` names, for images of `image_size` pixels, initialised as timm does it.

    Its features are those before the classifier (num_classes=0), pooled. Dropout and stochastic depth are off: every
    pass gives the same, which a second pass over a chunk (GradCache) and a resume depend on. Raises ConfigError
    where timm has no such model, or it takes no such images or yields no features.
    """
    name = require_timm_model(settings)
    config = timm.models.get_pretrained_cfg(name)
    size = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **size)
        feature_dim = _feature_dim(model, image_size)
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"encoder.arch={settings.arch} yields no features of images of {image_size} pixels ({reason}); give "
            "another --image-size or --encoder.arch"
        ) from error
    _require_whole_patches(model, settings.arch, image_size)
    for module in model.modules():
        for rate in ("p", "drop_prob"):  # of torch's Dropout, of timm's DropPath
            if isinstance(getattr(module, rate, None), float) and "drop" in type(module).__name__.lower():
                setattr(module, rate, 0.0)
    if settings.freeze_patch_embed:
        _freeze_patch_embed(model, settings.arch)
    return _as_encoder(model, feature_dim)


def resized(encoder: Encoder, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`tensors` with the position embedding of a ViT that was made for images of another size resampled, as timm
    resamples it; all others as they are."""
    given = tensors.get("pos_embed")
    if given is None or given.ndim != 3 or not isinstance(encoder, VisionTransformer) or encoder.pos_embed is None:
        return tensors
    own, prefix = encoder.pos_embed, 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    tokens, width = given.shape[1] - prefix, given.shape[2]
    if tokens == own.shape[1] - prefix or width != own.shape[2] or tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
        return tensors
    grid = list(encoder.patch_embed.grid_size)
    return {**tensors, "pos_embed": resample_abs_pos_embed(given, grid, num_prefix_tokens=prefix)}


def _require_whole_patches(model: nn.Module, arch: str, image_size: int) -> None:
    """Raise ConfigError where a model would leave out pixels at the edge, which fill no patch."""
    side = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    for pixels in side if isinstance(side, tuple) else (side,):
        if image_size % pixels:
            fitting = max(1, round(image_size / pixels)) * pixels
            raise ConfigError(
                f"encoder.arch={arch} sees images in patches of {pixels} pixels, and {image_size} pixels are no whole "
                f"number of them; give --image-size {fitting}"
            )


@torch.no_grad()
def _feature_dim(model: nn.Module, image_size: int) -> int:
    """F of the representations (N,F), from those of an image. ValueError where they have another form.

    timm's `num_features` is not that of every model.
    """
    h = model.eval()(torch.zeros(1, 3, image_size, image_size))
    model.train()
    if not isinstance(h, torch.Tensor) or h.ndim != 2:
        form = tuple(h.shape) if isinstance(h, torch.Tensor) else type(h).__name__
        raise ValueError(f"what it gives is {form} and no vector an image")
    return h.shape[1]


def _freeze_patch_embed(model: nn.Module, arch: str) -> None:
    projection = getattr(model, "patch_embed", None)
    if not isinstance(projection, nn.Module):
        raise ConfigError(f"encoder.freeze_patch_embed has no effect on {arch}, which has no patch_embed; leave it out")
    projection.requires_grad_(False)


def _as_encoder(model: nn.Module, feature_dim: int) -> Encoder:
    """`model` itself, made an `Encoder` in place, as FSDP does it: around it, its keys would not be timm's."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind, Encoder), {})
    assert isinstance(model, Encoder)
    model.feature_dim = feature_dim
    return model
