"""Images by Pillow and torchvision from the parameters of a view: the reference of operators and backends."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from equimod.pipelines.batch import Batch, Decoded
from equimod.pipelines.codec import encode_png
from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import AugmentationPolicy, ViewPolicy
from equimod.pipelines.records.protocol import StoredImage


def cut(content: StoredImage, batch: Batch | Decoded, row: int, policy: AugmentationPolicy) -> list[Tensor]:
    """x and the views of a sample before the operators, uint8 (3,S,S) each, from the boxes in `batch`.

    For records that hold originals.
    """
    file = io.BytesIO(encode_png(content) if isinstance(content, np.ndarray) else content)
    image = Image.open(file).convert("RGB")
    mode = InterpolationMode(policy.x.interpolation)
    outputs = [tv.pil_to_tensor(tv.center_crop(tv.resize(image, [policy.x.resize], mode), [policy.x.size]))]
    for view, of_view in zip(batch.views, policy.views, strict=True):
        x, y, width, height = view.params.crop[row].tolist()
        size = [of_view.crop.size] * 2
        cropped = tv.resized_crop(image, y, x, height, width, size, InterpolationMode(of_view.crop.interpolation))
        outputs.append(tv.pil_to_tensor(cropped))
    return outputs


def replay(image: Tensor, params: AugmentationParams, row: int, policy: ViewPolicy) -> Tensor:
    """A whole view by torchvision in floats: uint8 (3,S,S), cropped and resized, to normalised float (3,S,S)."""
    pixels = _operated(image.float() / 255, params, row, policy, white=1.0)
    normalized: Tensor = tv.normalize(pixels, list(policy.normalize.mean), list(policy.normalize.std))
    return normalized


def replay_on_pillow(image: Tensor, params: AugmentationParams, row: int, policy: ViewPolicy) -> Tensor:
    """The same before it is normalised, by torchvision on a Pillow image, which rounds after each operator: uint8."""
    pixels: Tensor = tv.pil_to_tensor(_operated(tv.to_pil_image(image), params, row, policy, white=255))
    return pixels


def _operated(pixels: Any, params: AugmentationParams, row: int, policy: ViewPolicy, white: float) -> Any:
    """Pixels from 0 to `white`, of a tensor or of a Pillow image, after the operators."""
    if params.flip[row]:
        pixels = tv.horizontal_flip(pixels)
    if params.jitter[row]:
        jitters = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        for operator in params.order[row].tolist():
            pixels = jitters[operator](pixels, params.factors[row, operator].item())
    if params.gray[row]:
        pixels = tv.rgb_to_grayscale(pixels, num_output_channels=3)
    if params.blur[row]:
        assert policy.blur is not None
        pixels = tv.gaussian_blur(pixels, [policy.blur.kernel_size] * 2, [params.sigma[row].item()] * 2)
    if params.solarize[row]:
        assert policy.solarize is not None
        pixels = tv.solarize(pixels, policy.solarize.threshold * white / 255)
    return pixels
