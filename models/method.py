"""What every invariance method is: a module with a loss, a hook before the step and, for some, a target network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from equimod.models.encoder import Encoder


class Method(nn.Module, ABC):
    """A method of visual instance discrimination: everything behind the encoder.

    Built from (encoder, settings): a method may read the encoder's `feature_dim` or copy it as its target
    network, but never holds the encoder itself, which belongs to `SSL`.
    """

    norm_per_view = False  # batch norms see each view by itself, and not both together

    @abstractmethod
    def forward(self, h: tuple[Tensor, Tensor], targets: tuple[Tensor, ...]) -> Tensor:
        """The invariance loss, a scalar, of two views of each image.

        `h`: their representations (N,F); `targets`: what `target_forward` returned for them.
        """

    def on_views(self, network: Callable[[Tensor], Tensor], views: Tensor, sets: int = 2) -> tuple[Tensor, ...]:
        """What a network makes of each of the sets of N in `views` (sets · N,...)."""
        if self.norm_per_view:
            return tuple(map(network, views.chunk(sets)))
        return network(views).chunk(sets)

    def target_forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """Outputs (N,...) of a second network such as BYOL's target, without a gradient.

        `views` (2N,3,S,S): the first ones, then the second. They may come in several chunks.
        """
        return ()

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Called before every training step with the trained encoder; `progress` runs from 0 to 1 over the training."""
