"""What every invariance method is: a module with a loss, and a hook before the step."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from equimod.models.encoder import Encoder


class Method(nn.Module, ABC):
    """A method of visual instance discrimination: everything of it that lies behind the encoder.

    Built from (encoder, settings): a method may read the encoder's `feature_dim` or copy it as its target
    network, but never holds the encoder itself, which belongs to `SSL`.
    """

    @abstractmethod
    def forward(self, h: tuple[Tensor, Tensor], seen: tuple[Tensor, ...]) -> Tensor:
        """The invariance loss, a scalar, of two views of each image.

        `h`: their representations (N,F); `seen`: what `look` returned for them.
        """

    def look(self, views: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """What a method takes from the images themselves, (N,3,S,S) each: tensors (N,...) that carry no gradient.

        For a second network such as BYOL's target. Images may come in several parts.
        """
        return ()

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Called before every training step with the trained encoder; `progress` runs from 0 to 1 over the training."""
