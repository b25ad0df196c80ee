"""The gradient of a batch whose images do not fit through the encoder at once (GradCache, Gao et al., 2021).

A contrastive loss of a whole batch is not the mean of the losses of its chunks, so their gradients cannot be added up.
But it depends on the images through their representations alone: these come first, chunk by chunk and without a graph;
then the gradient of the loss on them; then every chunk once more, with a graph, to send that gradient on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equimod.models.ssl import SSL, CachedFeatures, joined
from equimod.pipelines.batch import Batch
from equimod.pipelines.timing import StageTimes

Chunk = tuple[Tensor | None, tuple[Tensor, Tensor]]  # x and the views of some samples


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

        It is that of the whole batch; only batch norms of the encoder see one chunk at a time, as they would see the
        images of a rank. Their running statistics take in every chunk once. With more than one chunk the encoder runs
        forward twice.
        """
        i, j = batch.views
        encodings = (i.encoding, j.encoding)
        *earlier, last = _split(batch, self.chunks)
        cached = self._cache(earlier, last, encodings, batch.label) if earlier else None
        with self._forward(batch.label):
            losses: dict[str, Tensor] = self.parallel(*last, encodings, batch.label, cached)
        with self.stages.record("backward", batch.label.device):
            self.scaler.scale(losses["loss"]).backward()
        return losses

    def _cache(
        self, earlier: Sequence[Chunk], last: Chunk, encodings: tuple[Tensor, Tensor], label: Tensor
    ) -> CachedFeatures:
        """Add the gradient of all chunks but the last to the encoder's, and return their features."""
        with _buffers_kept(self.model):
            with torch.no_grad(), self._forward(label):
                h = [self.model.encode(*images) for images in (*earlier, last)]
                targets = [self.model.method.target_forward(views) for _, views in (*earlier, last)]
            leaves = [tuple(t.detach().requires_grad_() for t in chunk) for chunk in h]
            with self._forward(label):
                loss = self.model.compare(joined(leaves), joined(targets), encodings, label)["loss"]
            wanted = [t for chunk in leaves[:-1] for t in chunk]
            with self.stages.record("backward", label.device):
                gradients = iter(torch.autograd.grad(self.scaler.scale(loss), wanted))
        rotation = label.new_zeros((), dtype=torch.float32)
        for x, views in earlier:
            with self._forward(label):
                outputs = list(self.model.encode(x, views))
                send_back = [next(gradients) for _ in outputs]
                if self.model.essl is not None:
                    outputs.append(self.model.rotation(views) / self.chunks)
                    rotation = rotation + outputs[-1].detach()
                    send_back.append(self.scaler.scale(outputs[-1].new_tensor(self.model.essl.settings.weight)))
            with self.stages.record("backward", label.device):
                torch.autograd.backward(outputs, send_back)
        return CachedFeatures(joined(h[:-1]), joined(targets[:-1]), rotation)

    @contextmanager
    def _forward(self, like: Tensor) -> Iterator[None]:
        cast = torch.autocast(like.device.type, dtype=self.autocast) if self.autocast else nullcontext()
        with self.stages.record("forward", like.device), cast:
            yield


def _split(batch: Batch, chunks: int) -> list[Chunk]:
    x = [None] * chunks if batch.x is None else batch.x.chunk(chunks)
    i, j = (view.image.chunk(chunks) for view in batch.views)
    return list(zip(x, zip(i, j, strict=True), strict=True))


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Leave the buffers, such as running statistics, as they were."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
