"""A view replayed by torchvision from its parameters: the reference of the operators and of every backend."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from equimod.pipelines.params import AugmentationParams
from equimod.pipelines.policy import ViewPolicy


def replay(image: Tensor, params: AugmentationParams, row: int, policy: ViewPolicy) -> Tensor:
    """A whole view by torchvision: uint8 (3,S,S), cropped and resized, to normalised float (3,S,S)."""
    pixels = image.float() / 255
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
        pixels = tv.solarize(pixels, policy.solarize.threshold / 255)
    return tv.normalize(pixels, list(policy.normalize.mean), list(policy.normalize.std))
