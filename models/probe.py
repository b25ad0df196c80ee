"""The online probe: a linear classifier that learns beside the encoder and leaves no trace in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OnlineProbe(nn.Module):
    """Linear classifier on standardised, detached representations h, trained by the run's own optimizer.

    Representations are brought to mean 0 and deviation 1, so that one learning rate does for every encoder; weights
    start at 0, so that nothing random is drawn.
    """

    def __init__(self, feature_dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_dim, affine=False)
        self.classifier = nn.Linear(feature_dim, classes, bias=False)
        nn.init.zeros_(self.classifier.weight)

    def forward(self, h: tuple[Tensor, ...], label: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and top-1 accuracy in percent, on representations (N,F) of views of images with labels (N,).

        The accuracy is that on views which the classifier has not learned from yet, of images which it has.
        """
        labels = label.repeat(len(h))
        scores = self.classifier(self.norm(torch.cat(h).detach()))
        loss = F.cross_entropy(scores, labels)
        return loss, 100 * (scores.argmax(1) == labels).to(loss.dtype).mean()
