"""The gradient of a batch whose images do not fit through the encoder at once (GradCache, Gao et al., 2021).

A contrastive loss of a whole batch is not the mean of the losses of its chunks, so their gradients cannot be added up.
But it depends on the images through their representations alone: these come first, chunk by chunk and without a graph;
then the gradient of the loss on them; then every chunk once more, with a graph, to send that gradient on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equimod.models.ssl import SSL, CachedFeatures, joined
from equimod.pipelines.batch import Batch
from equimod.pipelines.timing import StageTimes


@dataclass(frozen=True)
class GradCache:
    """Forward and backward: how a batch goes through the model, in `chunks` of equal size, one after the other."""

    model: SSL
    parallel: nn.Module  # `model` or its data-parallel form, which averages gradients over the ranks
    chunks: int
    scaler: torch.amp.GradScaler
    autocast: torch.dtype | None
    stages: StageTimes = field(default_factory=StageTimes)  # of the run, for the time that a step takes

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Add the (scaled) gradient of the loss of `batch` to the parameters'. Returns the losses of `SSL.forward`.

        It is that of the loss of the whole batch, with an encoder whose batch norms see one chunk at a time (of all
        ranks, where they are synchronised), which without chunks they do not. Their running statistics take in every
        chunk once. With more than one chunk the encoder runs forward twice.
        """
        images, (encoding_i, encoding_j) = self._images(batch), batch.encodings
        encodings = (encoding_i, encoding_j)
        cached = self._cache(images, encodings, batch.label) if self.chunks > 1 else None
        with self._forward(batch.label):
            losses: dict[str, Tensor] = self.parallel(self._chunk(images, -1), encodings, batch.label, cached)
        with self.stages.record("backward", batch.label.device):
            self.scaler.scale(losses["loss"]).backward()
        return losses

    def _images(self, batch: Batch) -> Tensor:
        """What goes through the encoder, as `SSL.forward` takes it. ValueError for EquiMod without x."""
        wanted = self.model.image_sets * len(batch)
        if wanted > len(batch.images):
            raise ValueError("EquiMod needs the non-augmented images x: build the pipeline with with_x=True")
        return batch.images[len(batch.images) - wanted :]

    def _chunk(self, images: Tensor, number: int) -> Tensor:
        """The images of one chunk of the samples."""
        if self.chunks == 1:
            return images
        return torch.cat([of_set.chunk(self.chunks)[number] for of_set in images.chunk(self.model.image_sets)])

    def _cache(self, images: Tensor, encodings: tuple[Tensor, Tensor], label: Tensor) -> CachedFeatures:
        """Add the gradient of all chunks but the last to the encoder's, and return their features."""
        h, targets = [], []
        with _buffers_kept(self.model):
            with torch.no_grad(), self._forward(label):
                for number in range(self.chunks):
                    chunk = self._chunk(images, number)
                    h.append(self.model.encode(chunk))
                    targets.append(self.model.target_forward(chunk))
            leaves = [tuple(t.detach().requires_grad_() for t in of_chunk) for of_chunk in h]
            with self._forward(label):
                loss = self.model.compare(joined(leaves), joined(targets), encodings, label)["loss"]
            wanted = [t for of_chunk in leaves[:-1] for t in of_chunk]
            with self.stages.record("backward", label.device):
                gradients = iter(torch.autograd.grad(self.scaler.scale(loss), wanted))
        rotation = label.new_zeros((), dtype=torch.float32)
        for number in range(self.chunks - 1):
            chunk = self._chunk(images, number)
            with self._forward(label):
                outputs = list(self.model.encode(chunk))
                send_back = [next(gradients) for _ in outputs]
                if self.model.essl is not None:
                    outputs.append(self.model.rotation(chunk) / self.chunks)
                    rotation = rotation + outputs[-1].detach()
                    weight = torch.full_like(outputs[-1], self.model.essl.settings.weight)
                    send_back.append(self.scaler.scale(weight))
            with self.stages.record("backward", label.device):
                torch.autograd.backward(outputs, send_back)
        return CachedFeatures(joined(h[:-1]), joined(targets[:-1]), rotation)

    @contextmanager
    def _forward(self, like: Tensor) -> Iterator[None]:
        cast = torch.autocast(like.device.type, dtype=self.autocast) if self.autocast else nullcontext()
        with self.stages.record("forward", like.device), cast:
            yield


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Leave the buffers, such as running statistics, as they were."""
    kinds = [[b for b in model.buffers() if b.is_floating_point() is wanted] for wanted in (True, False)]
    before = [[torch.empty_like(b) for b in buffers] for buffers in kinds]
    _copy(before, kinds)
    yield
    _copy(kinds, before)


@torch.no_grad()
def _copy(targets: list[list[Tensor]], sources: list[list[Tensor]]) -> None:
    """In few launches, for which the tensors of a list must be of one type."""
    for ours, theirs in zip(targets, sources, strict=True):
        if ours:
            torch._foreach_copy_(ours, theirs)
