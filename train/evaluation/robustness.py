"""How well the class is found under corruptions that no training image had (Hendrycks and Dietterich, 2019)."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.cores import available_cores
from equimod.pipelines.policy import AugmentationPolicy, CenterPolicy, Normalize
from equimod.pipelines.progress import track
from equimod.pipelines.records.protocol import Records
from equimod.pipelines.records.selection import spread_over
from equimod.pipelines.workers import worker_pool
from equimod.train.config import ConfigError
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import BATCH_SIZE, FrozenEncoder, labels_of, top_k
from equimod.train.evaluation.linear_probe import ProbeSettings, classifier_of
from equimod.train.evaluation.trained_run import TrainedRun

Pixels = NDArray[np.uint8]
"""Images (N,S,S,3)."""
Corruption = tuple[str, int]
"""Its name, and its strength from 1 to 5."""

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
STRENGTHS = (1, 2, 3, 4, 5)
_SMALLEST = 32  # pixels
_SEEDED = ("impulse_noise", "glass_blur")  # by an argument, all others by numpy's global generator


@dataclass(frozen=True)
class RobustnessSettings:
    images: int = 1000  # or all, where they are fewer


SETTINGS = {**asdict(RobustnessSettings()), **asdict(ProbeSettings())}


def run(trained: TrainedRun) -> Values:
    """See `measure`: of the classifier of --linear-cached, on validation images. ConfigError where imagecorruptions is
    missing or images are smaller than 32 pixels."""
    require_corruptions(trained.config.evaluation_policy.x)
    train = trained.train_features
    classifier = classifier_of(train, seed=trained.seed)
    records = spread_over(trained.val, RobustnessSettings().images)
    label = labels_of(records, train.classes).to(train.h.device)
    x = trained.config.evaluation_policy.x

    def logits(pixels: Pixels) -> Tensor:
        return torch.cat([classifier(encode(trained.encoder, part, x.normalize)) for part in _batches(pixels)])

    with torch.no_grad():
        yield from measure(logits, images_of(records, x, trained.workers), records.index, label, seed=trained.seed)


def measure(
    logits: Callable[[Pixels], Tensor], pixels: Pixels, index: NDArray[np.int64], label: Tensor, *, seed: int
) -> Values:
    """Top-1 in percent of the images as they are (robustness_clean_top1), over all corruptions and strengths
    (robustness_top1), and of each corruption, such as robustness_fog_top1; and robustness_flip_rate_top1, how often
    the best class changes from one strength to the next, from none on, in percent.

    `logits`: of images, (N,C); `index` (N,) and `seed`: what the corruptions depend on.
    """
    clean = logits(pixels)
    yield "robustness_clean_top1", top_k(clean, label, 1)
    tasks = list(product(CORRUPTIONS, STRENGTHS))
    best = of_clean = clean.argmax(1)
    accuracies, flips = dict[str, list[float]](), list[float]()
    for (name, strength), images in track(corrupted(pixels, index, tasks, seed), len(tasks), "robustness", "sets"):
        found = logits(images)
        before = of_clean if strength == STRENGTHS[0] else best
        best = found.argmax(1)
        flips.append(100 * (best != before).double().mean().item())
        accuracies.setdefault(name, []).append(top_k(found, label, 1))
    yield "robustness_top1", statistics.mean(map(statistics.mean, accuracies.values()))
    for name, of_strengths in accuracies.items():
        yield f"robustness_{name}_top1", statistics.mean(of_strengths)
    yield "robustness_flip_rate_top1", statistics.mean(flips)


def require_corruptions(x: CenterPolicy) -> None:
    """Raise ConfigError where the package is missing, or does not take such images."""
    if x.size < _SMALLEST:
        raise ConfigError(f"--robustness needs images of {_SMALLEST} pixels or more, and the encoder takes {x.size}")
    try:
        import imagecorruptions  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--robustness needs imagecorruptions ({error}): pip install 'equimod[robustness]'"
        ) from error


def images_of(records: Records, x: CenterPolicy, workers: int | None) -> Pixels:
    """The images x of `records` before they are normalised."""
    policy = AugmentationPolicy(x, views=())
    pipeline = build_pipeline(records, policy, batch_size=BATCH_SIZE, seed=0, workers=workers, shuffle=False)
    parts = [decoded.x.permute(0, 2, 3, 1).numpy().copy() for decoded in pipeline.decoded(0) if decoded.x is not None]
    return np.concatenate(parts)


def encode(encoder: FrozenEncoder, pixels: Pixels, normalize: Normalize) -> Tensor:
    """Representations (N,F) of images."""
    images = torch.from_numpy(pixels).to(encoder.device).permute(0, 3, 1, 2) / 255
    return encoder(tv.normalize(images, list(normalize.mean), list(normalize.std)))


def corrupted(
    pixels: Pixels, index: NDArray[np.int64], tasks: list[Corruption], seed: int
) -> Iterator[tuple[Corruption, Pixels]]:
    """All images under each of the corruptions, made by all cores, a few ahead of what is taken."""
    workers = min(available_cores(), len(tasks))
    with worker_pool(workers, _hold, pixels, index, seed) as pool:
        submitted = ((task, pool.submit(_corrupt, *task)) for task in tasks)
        waiting = deque(islice(submitted, 2 * workers))
        try:
            while waiting:
                task, images = waiting.popleft()
                yield task, images.result()
                waiting.extend(islice(submitted, 1))
        finally:
            pool.shutdown(cancel_futures=True)


_held: tuple[Pixels, NDArray[np.int64], int] | None = None  # of a worker


def _hold(pixels: Pixels, index: NDArray[np.int64], seed: int) -> None:
    global _held
    _held = pixels, index, seed


def _corrupt(name: str, strength: int) -> Pixels:
    assert _held is not None
    pixels, index, seed = _held
    return np.stack(
        [corrupt(image, name, strength, (seed, int(number))) for image, number in zip(pixels, index, strict=True)]
    )


def corrupt(image: Pixels, name: str, strength: int, key: tuple[int, int]) -> Pixels:
    """An image (S,S,3) under a corruption, which depends on `key`, the name and the strength alone."""
    from imagecorruptions import corruption_dict

    entropy = (*key, CORRUPTIONS.index(name), strength)
    (drawn,) = np.random.SeedSequence(entropy).generate_state(1)
    options: dict[str, Any] = {"seed": int(drawn)} if name in _SEEDED else {}
    np.random.seed(drawn)  # noqa: NPY002  # which the package draws from
    return np.asarray(corruption_dict[name](Image.fromarray(image), strength, **options)).astype(np.uint8)


def _batches(pixels: Pixels) -> Iterator[Pixels]:
    return (pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE))
