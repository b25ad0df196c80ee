"""The gradient of a batch whose images do not fit through the encoder at once.

A contrastive loss of a whole batch is not the mean of the losses of its parts, so their gradients cannot be added up.
But it depends on the images through their representations alone: these come first, part by part and without a graph;
then the gradient of the loss on them; then every part once more, with a graph, to send that gradient on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equimod.models.ssl import SSL, Held, joined
from equimod.pipelines.batch import Batch
from equimod.pipelines.timing import StageTimes

Images = tuple[Tensor | None, tuple[Tensor, Tensor]]  # x and the views of some samples


@dataclass(frozen=True)
class Backward:
    """Forward and backward: how a batch goes through the model, in `parts` of equal size, one after the other."""

    model: SSL
    parallel: nn.Module  # `model` or its data-parallel form, which averages gradients over the ranks
    parts: int
    scaler: torch.amp.GradScaler
    autocast: torch.dtype | None
    stages: StageTimes = field(default_factory=StageTimes)  # of the run, for the time that a step takes

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Add the (scaled) gradient of the loss of `batch` to the parameters'. Returns the losses of `SSL.forward`.

        It is that of the whole batch; only batch norms of the encoder see one part at a time, as they would see the
        share of a rank. Their running statistics take in every part once. With more than one part the encoder runs
        forward twice.
        """
        i, j = batch.views
        encodings = (i.encoding, j.encoding)
        *earlier, last = _split(batch, self.parts)
        held = self._hold(earlier, last, encodings, batch.label) if earlier else None
        with self._forward(batch.label):
            losses: dict[str, Tensor] = self.parallel(*last, encodings, batch.label, held)
        with self.stages.record("backward", batch.label.device):
            self.scaler.scale(losses["loss"]).backward()
        return losses

    def _hold(self, earlier: Sequence[Images], last: Images, encodings: tuple[Tensor, Tensor], label: Tensor) -> Held:
        """Add the gradient of all parts but the last to the encoder's, and return what stands for them."""
        with _buffers_kept(self.model):
            with torch.no_grad(), self._forward(label):
                h = [self.model.encode(*images) for images in (*earlier, last)]
                seen = [self.model.method.look(views) for _, views in (*earlier, last)]
            leaves = [tuple(t.detach().requires_grad_() for t in part) for part in h]
            with self._forward(label):
                loss = self.model.compare(joined(leaves), joined(seen), encodings, label)["loss"]
            wanted = [t for part in leaves[:-1] for t in part]
            with self.stages.record("backward", label.device):
                gradients = iter(torch.autograd.grad(self.scaler.scale(loss), wanted))
        rotation = label.new_zeros((), dtype=torch.float32)
        for x, views in earlier:
            with self._forward(label):
                outputs = list(self.model.encode(x, views))
                send_back = [next(gradients) for _ in outputs]
                if self.model.essl is not None:
                    outputs.append(self.model.rotation(views) / self.parts)
                    rotation = rotation + outputs[-1].detach()
                    send_back.append(self.scaler.scale(outputs[-1].new_tensor(self.model.essl.settings.weight)))
            with self.stages.record("backward", label.device):
                torch.autograd.backward(outputs, send_back)
        return Held(joined(h[:-1]), joined(seen[:-1]), rotation)

    @contextmanager
    def _forward(self, like: Tensor) -> Iterator[None]:
        cast = torch.autocast(like.device.type, dtype=self.autocast) if self.autocast else nullcontext()
        with self.stages.record("forward", like.device), cast:
            yield


def _split(batch: Batch, parts: int) -> list[Images]:
    x = [None] * parts if batch.x is None else batch.x.chunk(parts)
    i, j = (view.image.chunk(parts) for view in batch.views)
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
