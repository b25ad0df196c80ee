"""What a pipeline hands over: images with the exact parameters that made them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from equimod.pipelines.params import AugmentationParams


@dataclass(frozen=True)
class View:
    """One augmented view of every sample of a batch."""

    image: Tensor  # float32 (N,3,S,S), normalised, on the training device; uint8 before the operators
    params: AugmentationParams  # on the host, first dimension N
    encoding: Tensor  # float32 (N,P), the vector of paper A.1, on the device of `image`


@dataclass(frozen=True)
class Batch:
    x: Tensor | None  # like View.image, not augmented; None where the pipeline was built with_x=False
    views: tuple[View, ...]
    label: Tensor  # int64 (N,), on the device of the images
    index: Tensor  # int64 (N,), position of the sample in the source, on the host

    def __len__(self) -> int:
        return len(self.index)
