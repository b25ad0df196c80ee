"""What a pipeline hands over: images with the exact parameters that made them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from equimod.pipelines.params import AugmentationParams


@dataclass(frozen=True)
class View:
    """One augmented view of every sample of a batch."""

    image: Tensor  # (N,3,S,S): uint8 before the operators, behind them as `Batch.images`
    params: AugmentationParams  # on the host, first dimension N
    encoding: Tensor  # float32 (N,P), the vector of paper A.1, on the device of `image` behind the operators


@dataclass(frozen=True)
class Decoded:
    """A batch before the operators, as the backend made it."""

    x: Tensor | None  # uint8 (N,3,S,S), not augmented; None where the pipeline was built with_x=False
    views: tuple[View, ...]
    label: Tensor  # int64 (N,), on the host
    index: Tensor  # int64 (N,), position of the sample in the source, on the host

    def __len__(self) -> int:
        return len(self.index)

    @property
    def images(self) -> tuple[Tensor, ...]:
        """x, where there is one, and the views, uint8 (N,3,S,S) each."""
        return (*(() if self.x is None else (self.x,)), *(view.image for view in self.views))


@dataclass(frozen=True)
class Batch:
    """A batch on the training device. On a GPU it holds until the next one is asked for, whose memory goes round."""

    images: Tensor  # normalised, channels_last: (N,3,S,S) of x, where there is one, and then of each view
    params: tuple[AugmentationParams, ...]  # of each view, on the host, first dimension N
    encodings: tuple[Tensor, ...]  # of each view, float32 (N,P), the vectors of paper A.1
    label: Tensor  # int64 (N,)
    index: Tensor  # int64 (N,), position of the sample in the source, on the host

    def __len__(self) -> int:
        return len(self.index)

    @property
    def x(self) -> Tensor | None:
        """The images that are not augmented, (N,3,S,S); None where the pipeline was built with_x=False."""
        return self.images[: len(self)] if len(self.images) > len(self) * len(self.params) else None

    @property
    def views(self) -> tuple[View, ...]:
        """Each view's images (N,3,S,S), with its parameters and their encoding."""
        images = self.images[len(self.images) - len(self) * len(self.params) :].split(len(self))
        return tuple(map(View, images, self.params, self.encodings))
