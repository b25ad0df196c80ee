"""Few-shot classification: new classes told apart from a few images of each, on frozen representations."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.progress import track
from equimod.train.config import ConfigError
from equimod.train.evaluation import Values
from equimod.train.evaluation.equivariance import mean_and_interval
from equimod.train.evaluation.features import Features
from equimod.train.evaluation.trained_run import TrainedRun


@dataclass(frozen=True)
class FewShotSettings:
    """As is usual since Snell et al. (2017)."""

    ways: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15  # of each class
    episodes: int = 2000


SETTINGS = asdict(FewShotSettings())


def run(trained: TrainedRun) -> Values:
    """See `measure`: on the validation images. ConfigError where their classes or images are too few."""
    return measure(trained.val_features.float(), seed=trained.seed)


def measure(features: Features, *, seed: int, settings: FewShotSettings = FewShotSettings()) -> Values:
    """few_shot_5way_1shot_top1 and the like in percent: means over episodes, with half a 95 % interval.

    An episode draws classes, and images of each as shots and queries. A query has the class whose mean of the shots,
    of length 1 each, has the highest cosine similarity: the prototypes of Snell et al. (2017). ConfigError where too
    few classes have images enough.
    """
    need = max(settings.shots) + settings.queries
    label = features.label.cpu().numpy()
    of_class = [rows for c in range(len(features.classes)) if len(rows := np.flatnonzero(label == c)) >= need]
    if len(of_class) < settings.ways:
        raise ConfigError(
            f"--few-shot needs {settings.ways} classes of {need} images, and {len(of_class)} of the validation "
            "images' have as many; give other images with --val"
        )
    h = F.normalize(features.h, dim=1)
    for shots in settings.shots:
        found = []
        for episode in track(range(settings.episodes), settings.episodes, f"{shots}-shot", "episodes"):
            drawn = _draw(of_class, seed, episode, settings.ways, shots + settings.queries)
            found.append(accuracy(h[torch.from_numpy(drawn).to(h.device)], shots))
        name = f"few_shot_{settings.ways}way_{shots}shot_top1"
        yield from mean_and_interval(name, 100 * torch.stack(found).double().cpu())


def accuracy(h: Tensor, shots: int) -> Tensor:
    """Share of the queries of an episode that get their class; h (ways, shots + queries, F) of length 1."""
    prototypes = F.normalize(h[:, :shots].mean(1), dim=1)
    best = (h[:, shots:] @ prototypes.T).argmax(2)
    return (best == torch.arange(len(h), device=h.device)[:, None]).float().mean()


def _draw(of_class: list[NDArray[np.int64]], seed: int, episode: int, ways: int, images: int) -> NDArray[np.int64]:
    """Rows (ways, images) of an episode, which depend on the seed and its number alone."""
    rng = np.random.default_rng((seed, episode))
    classes = rng.choice(len(of_class), ways, replace=False)
    return np.stack([rng.choice(of_class[c], images, replace=False) for c in classes])
