"""Settings for images of one's own, which follow from their number and their size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equimod.train.config.settings import Labels

RECIPE_BATCH_SIZE = 256  # that the learning rate of a recipe without a data set is for
LARGE = 100_000  # images from which on a set is trained like ImageNet


@dataclass(frozen=True)
class Images:
    """What a set of images is known by before a run."""

    count: int
    side: int
    """Shorter side in pixels, the median of some images."""


def look_at(paths: Sequence[Path], labels: Labels) -> Images:
    """Count the images that --data names, and look at the headers of some. Raises RecordsError."""
    from equimod.pipelines.images import survey  # only now: --help has no use for it

    count, sizes = survey(paths, labels)
    return Images(count, sorted(int(side) for side in sizes.min(axis=1))[len(sizes) // 2])


def has_gpu(device: str | None) -> bool:
    """Whether a run with this --system.device trains on a GPU."""
    if device == "cpu":
        return False
    import torch  # only now: --help has no use for it

    return torch.cuda.is_available()


def settings_for(
    images: Images,
    *,
    gpu: bool,
    lr: float,
    batch_size: int | None = None,
    epochs: int | None = None,
    given_weights: bool = False,
) -> dict[str, Any]:
    """Settings by their keys. `lr` is for RECIPE_BATCH_SIZE, `batch_size` and `epochs` are those that were given.

    The batch is the power of two that leaves 16 steps or more an epoch, of 16 to 256 images, and no more than there
    are. The learning rate follows its square root, which is better for small batches (SimCLR, appendix B.1). Images
    have 96 pixels, and 224 in a large set. On a CPU they have 64, and network and epochs are small too, so that 2,000
    images take minutes and not hours; an encoder that starts from given weights is not narrowed. No image is enlarged
    beyond 32 pixels.
    """
    large = images.count >= LARGE and gpu
    batch_size = batch_size or min(max(16, _power_of_two(images.count // 16)), 256, _power_of_two(images.count))
    epochs = epochs or (50 if not gpu else 100 if large else 200)
    size = max(32, min(64 if not gpu else 224 if large else 96, images.side // 32 * 32))
    return {
        "image_size": size,
        "encoder.arch": "resnet50" if large else "resnet18",
        "encoder.stem": "imagenet" if size > 32 else "cifar",
        "encoder.width": 64 if gpu or given_weights else 32,
        "batch_size": batch_size,
        "epochs": epochs,
        "optim.warmup_epochs": min(10.0, epochs / 10),
        "optim.lr": round(lr * math.sqrt(batch_size / RECIPE_BATCH_SIZE), 4),
    }


def _power_of_two(number: int) -> int:
    """The largest that is no larger than `number`, but at least 2."""
    return max(2, 1 << (number.bit_length() - 1)) if number else 2
