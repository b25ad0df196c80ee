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
    def forward(self, views: tuple[Tensor, Tensor], h: tuple[Tensor, Tensor]) -> Tensor:
        """The invariance loss, a scalar, of two views of each image.

        `views`: images (N,3,S,S), for methods that show them to a second network; `h`: their representations (N,F).
        """

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Called before every training step with the trained encoder; `progress` runs from 0 to 1 over the training."""
