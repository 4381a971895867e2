"""Exact segmentation metrics from one matrix of int64 counts."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from resnest_seg.labels import IGNORE_LABEL


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics as shares 0..1. A class that is absent from labels and predictions has no IoU: None.

    Attributes:
        mean_iou: Mean of the IoU over the classes that occur in labels or predictions (mmsegmentation's policy).
        mean_iou_absent_zero: The same with absent classes counted as 0 (PyTorch-Encoding's policy).
        pixel_accuracy: Share of labelled pixels whose prediction is right.
        mean_accuracy: Mean over the classes that occur in the labels of the share of their pixels that is right.
        class_iou: Intersection over union, by class.
        class_accuracy: Share of a class's labelled pixels that is right, by class; None where it has no pixels.
        class_share: Share of all labelled pixels, by class.
    """

    mean_iou: float
    mean_iou_absent_zero: float
    pixel_accuracy: float
    mean_accuracy: float
    class_iou: tuple[float | None, ...]
    class_accuracy: tuple[float | None, ...]
    class_share: tuple[float, ...]


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, int64 [K, K] on a device of choice, rows are labels.

    Pixels labelled `IGNORE_LABEL` are not counted.

    Args:
        num_classes: K.
        device: Where the counts live; labels and predictions are moved there.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, labels: Tensor, predictions: Tensor) -> ConfusionMatrix:
        """Count pixels; returns itself.

        Args:
            labels: Any shape, 0..K-1 or `IGNORE_LABEL`, any integer type.
            predictions: The same shape, 0..K-1.
        """
        assert labels.shape == predictions.shape, (labels.shape, predictions.shape)
        classes = len(self.counts)
        labels, predictions = labels.to(self.counts.device), predictions.to(self.counts.device)
        counted = labels != IGNORE_LABEL
        labels, predictions = labels[counted].long(), predictions[counted].long()
        assert not labels.numel() or int(labels.max()) < classes
        pairs = torch.bincount(labels * classes + predictions, minlength=classes * classes)
        self.counts += pairs.view(classes, classes)
        return self

    def scores(self) -> Scores:
        """The metrics of everything counted so far; 0 where nothing was counted, never NaN."""
        counts = self.counts.cpu()
        hits, labelled, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        union = labelled + predicted - hits
        class_iou = _shares(hits, union)
        class_accuracy = _shares(hits, labelled)
        total = max(int(labelled.sum()), 1)
        return Scores(
            mean_iou=_mean([iou for iou in class_iou if iou is not None]),
            mean_iou_absent_zero=_mean([iou or 0.0 for iou in class_iou]),
            pixel_accuracy=int(hits.sum()) / total,
            mean_accuracy=_mean([accuracy for accuracy in class_accuracy if accuracy is not None]),
            class_iou=class_iou,
            class_accuracy=class_accuracy,
            class_share=tuple(int(count) / total for count in labelled),
        )


def _shares(parts: Tensor, wholes: Tensor) -> tuple[float | None, ...]:
    # Python integers divide exactly rounded, however large the counts are.
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return tuple(part / whole if whole else None for part, whole in pairs)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
