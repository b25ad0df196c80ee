"""Images that are small in the first epochs and grow, which saves time.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resolution:
    """The side of the images in every epoch: each of `sizes` but the last for an equal share of the first `rising`."""

    sizes: tuple[int, ...]  # pixels
    rising: int = 0  # epochs

    @classmethod
    def from_start(cls, start: int, size: int, multiple: int, rising: int) -> Resolution:
        """From `start` to `size` pixels in steps of `multiple`. ValueError where steps do not lead there."""
        fitting = list(range(size % multiple or multiple, size, multiple))
        if start not in fitting:
            choice = " or ".join(map(str, fitting))
            raise ValueError(f"start={start} does not grow to {size} pixels in steps of {multiple}; give {choice}")
        return cls(tuple(range(start, size + 1, multiple)), rising)

    def at(self, epoch: int) -> int:
        """Side in pixels of the images of an epoch."""
        *smaller, size = self.sizes
        return smaller[epoch * len(smaller) // self.rising] if epoch < self.rising else size
