"""The training loss: cross-entropy over labelled pixels, main head plus weighted auxiliary head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from resnest_seg.labels import IGNORE_LABEL


def labelled_pixels(labels: Tensor) -> Tensor:
    """How many pixels of `labels` [N, H, W] count, int64 scalar."""
    return (labels != IGNORE_LABEL).sum()


class SegmentationLoss(nn.Module):
    """Cross-entropy of the main logits plus `aux_weight` times that of the auxiliary ones, over labelled pixels.

    The sum is divided by a number of labelled pixels that the caller gives, because with accumulation or several
    processes the right divisor is that of the whole effective batch. It is at least 1: a batch in which everything is
    ignored has loss 0 and gradient 0, not NaN.

    Args:
        aux_weight: Weight of the auxiliary loss (0.2 for the authors, 0.4 for mmsegmentation).
    """

    def __init__(self, aux_weight: float) -> None:
        super().__init__()
        self.aux_weight = aux_weight

    def forward(self, logits: Tensor, aux_logits: Tensor | None, labels: Tensor, *, pixels: Tensor) -> Tensor:
        """The loss, a float32 scalar.

        Args:
            logits: [N, K, H, W].
            aux_logits: [N, K, H, W], or None without an auxiliary head.
            labels: [N, H, W] int64, 0..K-1 or `IGNORE_LABEL`.
            pixels: Labelled pixels to divide by, a scalar.
        """
        total = _summed_cross_entropy(logits, labels)
        if aux_logits is not None:
            total = total + self.aux_weight * _summed_cross_entropy(aux_logits, labels)
        return total / pixels.clamp(min=1)


def _summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    # float32: the sum over a batch of pixels is far beyond what half precision can hold
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_LABEL, reduction="sum")
