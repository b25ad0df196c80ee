"""What evaluators share: the frozen encoder, the representations of a data set, top-k accuracy, and progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.inner_layer import InnerLayer
from equimod.pipelines.batch import Batch
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import AugmentationPolicy, CenterPolicy
from equimod.pipelines.progress import track
from equimod.pipelines.records.protocol import Records

BATCH_SIZE = 256  # of evaluations; batch norms are frozen, so it changes speed, and results by rounding only

T = TypeVar("T")


class FrozenEncoder:
    """An encoder in eval mode, called without gradient: images (N,3,S,S) to float32 representations h (N,F).

    `autocast`: the precision of the forward pass, as in training; None for float32.
    """

    def __init__(self, encoder: Encoder, autocast: torch.dtype | None) -> None:
        self._encoder = encoder.eval().to(memory_format=torch.channels_last)
        self._autocast = autocast
        self.dtype = autocast or torch.float32  # what it computes in
        self.feature_dim = encoder.feature_dim
        self.device = next(encoder.parameters()).device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            h: Tensor = self._encoder(images)
        return h.float()


class FrozenLayer(FrozenEncoder):
    """The same for an earlier layer of the encoder, whose representations are (N, feature_dim)."""

    def __init__(self, encoder: Encoder, autocast: torch.dtype | None, layer: str, feature_dim: int) -> None:
        super().__init__(encoder, autocast)
        self._inner = InnerLayer(encoder, layer)
        self.feature_dim = feature_dim

    def __call__(self, images: Tensor) -> Tensor:
        super().__call__(images)
        return self._inner.take().float()


@dataclass(frozen=True)
class Features:
    """The representations of a data set's images x, in the order of its records, on the encoder's device."""

    h: Tensor  # (N,F), float32 or what the encoder computes in
    label: Tensor  # int64 (N,), positions in `classes`; -1 where images have no labels
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.h)

    def float(self) -> Features:
        """The same in float32."""
        return replace(self, h=self.h.float())


@dataclass(frozen=True)
class ViewSet:
    """x and the views of every image of `records`, drawn from `policy` with `seed`, for a frozen encoder."""

    encoder: FrozenEncoder
    records: Records
    policy: AugmentationPolicy
    seed: int = 0
    workers: int | None = None

    def represent(self, what: str, batch_size: int = BATCH_SIZE) -> Iterator[tuple[Batch, Tensor, list[Tensor]]]:
        """All of the records in their order: batches with the representations (N,F) of x and of each view.

        `what` names the progress.
        """
        pipeline = build_pipeline(
            self.records,
            self.policy,
            batch_size=batch_size,
            seed=self.seed,
            device=self.encoder.device,
            workers=self.workers,
            shuffle=False,
        )
        for batch in track(pipeline.epoch(0), len(pipeline), what, "batches"):
            assert batch.x is not None
            yield batch, self.encoder(batch.x), [self.encoder(view.image) for view in batch.views]


def extract(
    encoder: FrozenEncoder,
    records: Records,
    policy: CenterPolicy,
    classes: Sequence[str],
    *,
    workers: int | None = None,
) -> Features:
    """Represent the non-augmented images x of `records`; the same call gives the same bits.

    `classes`: those of the training set, which number the labels: a data set that lacks some numbers its own
    differently. All stay in memory at once, 10.5 GB for ImageNet and ResNet-50.
    """
    h = torch.empty(len(records), encoder.feature_dim, device=encoder.device)
    start = 0
    images = ViewSet(encoder, records, AugmentationPolicy(policy, views=()), workers=workers)
    for _, h_x, _ in images.represent("features"):
        h[start : start + len(h_x)] = h_x
        start += len(h_x)
    return Features(h, labels_of(records, classes).to(encoder.device), tuple(classes))


def labels_of(records: Records, classes: Sequence[str]) -> Tensor:
    """Positions in `classes` of the classes of `records`: int64 (N,), -1 where images have no labels."""
    places = {name: place for place, name in enumerate(classes)}
    position = torch.tensor([*(places[name] for name in records.classes), -1])  # the last one for -1
    return position[torch.from_numpy(records.label.astype("int64"))]


def top_k(scores: Tensor, label: Tensor, k: int) -> float:
    """Percentage of the samples whose class is among the k best scores; scores (N,C), label (N,).

    The lower class comes first among equal scores, so that a constant score is worth as much as chance. What is no
    number comes before all.
    """
    own, number = scores.gather(1, label[:, None]), torch.arange(scores.shape[1], device=scores.device)
    before = ~(scores <= own) | ((scores == own) & (number < label[:, None]))
    return 100 * (before.sum(1) < k).double().mean().item()
