"""The linear classifier on a frozen encoder, with the paper's settings (Sec. 3.2.1), on images or on features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimod.pipelines.build import build_pipeline
from equimod.pipelines.sampler import Sampler
from equimod.train.distributed import data_parallel
from equimod.train.evaluation import Values
from equimod.train.evaluation.features import Features, ViewSet, top_k
from equimod.train.evaluation.kept_training import Kept, KeptTraining


@dataclass(frozen=True)
class ProbeSettings:
    """SGD with Nesterov momentum, cosine decay by step, no weight decay."""

    epochs: int = 90
    batch_size: int = 256  # or all images, where they are fewer
    lr: float = 0.2
    momentum: float = 0.9


Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""The batches of an epoch: representations (n,F) and labels (n,)."""


def on_images(train: ViewSet, val: Features, settings: ProbeSettings = ProbeSettings(), kept: Kept = Kept()) -> Values:
    """linear_top1 and linear_top5 in percent: trained on augmented images, by all ranks, tested on `val`.

    The one view of the policy is what the classifier trains on, drawn anew every epoch. `val` holds features of the
    policy's x.
    """
    dist_info = kept.dist_info
    pipeline = build_pipeline(
        train.records,
        train.policy,
        batch_size=min(settings.batch_size, len(train.records)),
        seed=train.seed,
        rank=dist_info.rank if dist_info else 0,
        world_size=dist_info.world_size if dist_info else 1,
        device=train.encoder.device,
        with_x=False,
        workers=train.workers,
    )

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in pipeline.epoch(epoch):
            yield train.encoder(batch.views[0].image), batch.label

    yield from _accuracy("linear", fit(batches, len(pipeline), val, settings, kept), val)
    kept.remove()


def on_features(train: Features, val: Features, *, seed: int, settings: ProbeSettings = ProbeSettings()) -> Values:
    """linear_cached_top1 and linear_cached_top5 in percent: the same classifier, trained on features of x instead."""
    yield from _accuracy("linear_cached", classifier_of(train, seed=seed, settings=settings), val)


def classifier_of(train: Features, *, seed: int, settings: ProbeSettings = ProbeSettings()) -> nn.Linear:
    """The classifier that is trained on features of x."""
    sampler = Sampler(len(train), min(settings.batch_size, len(train)), seed)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(len(sampler)):
            rows = torch.from_numpy(sampler.shard(epoch, step).positions).to(train.h.device)
            yield train.h[rows].float(), train.label[rows]

    return fit(batches, len(sampler), train, settings)


def fit(batches: Batches, steps: int, like: Features, settings: ProbeSettings, kept: Kept = Kept()) -> nn.Linear:
    """Train a classifier of features such as `like`, on its device, over `steps` batches an epoch.

    Starts from zero weights: the problem is convex, so nothing but the batches decides the result.
    """
    classifier = nn.Linear(like.h.shape[1], len(like.classes), device=like.h.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    training = KeptTraining(classifier, kept, lr=settings.lr, momentum=settings.momentum)
    shared = data_parallel(classifier, kept.dist_info) if kept.dist_info else classifier
    for h, label in training.batches(batches, settings.epochs, steps, "linear classifier"):
        training.optimizer.zero_grad()
        F.cross_entropy(shared(h), label).backward()
        training.optimizer.step()
    return classifier


@torch.no_grad()
def _accuracy(name: str, classifier: nn.Linear, val: Features) -> Values:
    scores = classifier(val.h.float())
    for k in (1, 5):
        yield f"{name}_top{k}", top_k(scores, val.label, k)
