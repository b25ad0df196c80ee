"""A layer of an encoder before its end as a second representation, beside h: what EquiMod may work on instead.

Lee et al., "Soft Equivariance Regularization for Invariant Self-Supervised Learning" (ICLR 2026), find that
equivariance that is asked of an earlier layer costs the last one less of what it is trained for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equimod.models.encoder import Encoder
from equimod.models.settings import ConfigError
from equimod.pipelines.errors import nearest


class InnerLayer:
    """What a layer of `encoder` gives in each of its passes, as one vector (N,G) an image.

    `name`: of the module, such as layer3 or blocks.5. Feature maps become their mean over all places, the tokens of a
    transformer the mean of those of its patches. Raises ConfigError where there is no such layer.
    """

    def __init__(self, encoder: Encoder, name: str) -> None:
        self._name = name
        self._channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"  # of timm's models
        self._prefix = int(getattr(encoder, "num_prefix_tokens", 0))  # class token and registers, of timm's models
        self._pooled: Tensor | None = None
        self._hook = _module(encoder, name).register_forward_hook(self._keep)

    def take(self) -> Tensor:
        """What the layer gave in the last pass: once."""
        assert self._pooled is not None
        pooled, self._pooled = self._pooled, None
        return pooled

    def remove(self) -> None:
        """Let go of the encoder."""
        self._hook.remove()

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._pooled = self._pool(output)

    def _pool(self, output: Any) -> Tensor:
        if isinstance(output, Tensor) and output.ndim == 4:
            return output.mean((1, 2) if self._channels_last else (2, 3))
        if isinstance(output, Tensor) and output.ndim == 3:
            return output[:, self._prefix :].mean(1)
        if isinstance(output, Tensor) and output.ndim == 2:
            return output
        form = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"equivariance.layer={self._name} gives {form}, no features of an image; give another layer")


@torch.no_grad()
def inner_dim(encoder: Encoder, name: str, image_size: int) -> int:
    """G of the representations (N,G) of a layer, of images of `image_size` pixels. Raises ConfigError."""
    inner = InnerLayer(encoder, name)
    was_training = encoder.training
    try:
        encoder.eval()(torch.zeros(1, 3, image_size, image_size))
        return inner.take().shape[1]
    finally:
        encoder.train(was_training)
        inner.remove()


def _module(encoder: Encoder, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(encoder.named_modules())
    if name in modules and name:
        return modules[name]
    hint = nearest(name, filter(None, modules))
    raise ConfigError(
        f"equivariance.layer={name}: the encoder has no layer of that name{hint}; its parts are "
        f"{', '.join(child for child, _ in encoder.named_children())}"
    )
