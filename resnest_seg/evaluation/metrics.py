"""Exact segmentation metrics from one matrix of int64 counts."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.errors import unknown_name
from resnest_seg.labels import IGNORE_LABEL

POLICIES = {"skipped": "mean_iou", "zero": "mean_iou_absent_zero"}
"""What a mean IoU does with classes absent from labels and predictions, and the score that does it: mmsegmentation
skips them, PyTorch-Encoding and PaddleSeg count them as 0."""

_CODES = 256  # labels and predictions are bytes: classes 0..254 and IGNORE_LABEL
_EXACT = 2**24  # OpenCV hands its counts out as float32, which are exact up to here


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics as shares 0..1. A class that is absent from labels and predictions has no IoU and no Dice: None.

    Attributes:
        mean_iou: Mean of the IoU over the classes that occur in labels or predictions (mmsegmentation's policy).
        mean_iou_absent_zero: The same with absent classes counted as 0 (PyTorch-Encoding's and PaddleSeg's policy).
        pixel_accuracy: Share of labelled pixels whose prediction is right.
        mean_accuracy: Mean over the classes that occur in the labels of the share of their pixels that is right.
        class_iou: Intersection over union, by class.
        class_accuracy: Share of a class's labelled pixels that is right, by class; None where it has no pixels.
        class_share: Share of all labelled pixels, by class.
        frequency_weighted_iou: Sum over the classes of share times IoU (Long et al., https://arxiv.org/abs/1411.4038);
            a class without labelled pixels weighs nothing.
        class_dice: Twice the intersection over the sum of labelled and predicted pixels, by class: its pixels' F1.
        mean_dice: Mean of the Dice over the classes that occur in labels or predictions (policy "skipped").
    """

    mean_iou: float
    mean_iou_absent_zero: float
    pixel_accuracy: float
    mean_accuracy: float
    class_iou: tuple[float | None, ...]
    class_accuracy: tuple[float | None, ...]
    class_share: tuple[float, ...]
    frequency_weighted_iou: float
    class_dice: tuple[float | None, ...]
    mean_dice: float

    def mean_iou_by(self, policy: str) -> float:
        """The mean IoU by the name of what it does with absent classes: "skipped" or "zero", see `POLICIES`.

        Raises:
            ConfigError: Unknown policy.
        """
        if policy not in POLICIES:
            raise unknown_name("policy for absent classes", policy, POLICIES)
        mean: float = getattr(self, POLICIES[policy])
        return mean


@dataclasses.dataclass(frozen=True)
class Confusion:
    """One kind of mistake.

    Attributes:
        label: The class that it is.
        prediction: The class that it was taken for, another one.
        pixels: How often.
        share: Of the label's pixels, 0..1.
    """

    label: int
    prediction: int
    pixels: int
    share: float


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, int64 [K, K] on a device of choice, rows are labels.

    Pixels labelled `IGNORE_LABEL` are not counted.

    Args:
        num_classes: K, at most 255.
        device: Where the counts live; labels and predictions are moved there.

    Attributes:
        counts: The matrix.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        assert 1 <= num_classes < _CODES, num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @property
    def state(self) -> list[Tensor]:
        """What to sum over processes: assign the sums, `matrix.state = [total(tensor) for tensor in matrix.state]`."""
        return [self.counts]

    @state.setter
    def state(self, state: list[Tensor]) -> None:
        """The sums."""
        (self.counts,) = state

    def update(self, labels: Tensor, predictions: Tensor) -> ConfusionMatrix:
        """Count pixels; returns itself.

        Args:
            labels: Any shape, 0..K-1 or `IGNORE_LABEL`, any integer type.
            predictions: The same shape, 0..K-1, any integer type; anything up to 255 where the label is ignored.
        """
        assert labels.shape == predictions.shape, (labels.shape, predictions.shape)
        classes, device = len(self.counts), self.counts.device
        count = _count_on_cpu if device.type == "cpu" else _count_by_bincount
        counts, strangers = count(labels.to(device).flatten(), predictions.to(device).flatten(), classes)
        assert not strangers, f"{strangers} pixels have a label or prediction that is none of {classes} classes"
        self.counts += counts
        return self

    def scores(self) -> Scores:
        """The metrics of everything counted so far; 0 where nothing was counted, never NaN."""
        counts = self.counts.cpu()
        hits, labelled, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        union = labelled + predicted - hits
        class_iou = _shares(hits, union)
        class_accuracy = _shares(hits, labelled)
        class_dice = _shares(2 * hits, labelled + predicted)
        total = max(int(labelled.sum()), 1)
        class_share = tuple(int(count) / total for count in labelled)
        return Scores(
            mean_iou=_mean([iou for iou in class_iou if iou is not None]),
            mean_iou_absent_zero=_mean([iou or 0.0 for iou in class_iou]),
            pixel_accuracy=int(hits.sum()) / total,
            mean_accuracy=_mean([accuracy for accuracy in class_accuracy if accuracy is not None]),
            class_iou=class_iou,
            class_accuracy=class_accuracy,
            class_share=class_share,
            frequency_weighted_iou=sum(share * (iou or 0.0) for share, iou in zip(class_share, class_iou, strict=True)),
            class_dice=class_dice,
            mean_dice=_mean([dice for dice in class_dice if dice is not None]),
        )

    def pairs(self, limit: int = 10) -> tuple[Confusion, ...]:
        """The `limit` most frequent mistakes, most pixels first, equal ones in the order of label and prediction."""
        assert limit >= 0, limit
        counts = self.counts.cpu()
        labelled, mistakes = counts.sum(dim=1).tolist(), counts.clone().fill_diagonal_(0).flatten()
        pixels, places = mistakes.sort(descending=True, stable=True)
        found = zip(pixels[:limit].tolist(), places[:limit].tolist(), strict=True)
        cells = [(*divmod(place, len(counts)), count) for count, place in found if count]
        return tuple(Confusion(label, other, count, count / labelled[label]) for label, other, count in cells)


def _count_by_bincount(labels: Tensor, predictions: Tensor, classes: int) -> tuple[Tensor, int]:
    """How often each pair occurs in ids [N]: int64 [K, K], and how many labelled pixels have an id that is no class."""
    # Ignored pixels are counted like the others, in a row that is dropped: picking pixels by a mask costs more than the
    # counting. 32 bits hold a pair, and are half the memory to walk through.
    pairs = torch.add(predictions.int(), labels.int(), alpha=_CODES)
    counts = torch.bincount(pairs, minlength=_CODES * _CODES)[: _CODES * _CODES].view(_CODES, _CODES)
    kept = counts[:classes, :classes]
    return kept, int(counts[:IGNORE_LABEL].sum() - kept.sum())


def _count_on_cpu(labels: Tensor, predictions: Tensor, classes: int) -> tuple[Tensor, int]:
    """The same by OpenCV's histogram of two images of bytes.

    One pass without intermediate results, on one thread: threads that wait for each other cost more on a busy machine.
    """
    rows, columns = _as_bytes(labels), _as_bytes(predictions)
    counts = np.zeros((classes, classes), np.int64)
    for start in range(0, len(rows), _EXACT):
        part = [ids[start : start + _EXACT] for ids in (rows, columns)]
        every = cv2.calcHist(part, [0, 1], None, [_CODES, _CODES], [0, _CODES, 0, _CODES])
        counts += every[:classes, :classes].astype(np.int64)
    return torch.from_numpy(counts), int(np.count_nonzero(rows != IGNORE_LABEL) - counts.sum())


def _as_bytes(ids: Tensor) -> NDArray[np.uint8]:
    values = ids.numpy()
    if values.dtype != np.uint8 and values.size:
        assert values.min() >= 0, values.min()
        assert values.max() < _CODES, values.max()
    return values.astype(np.uint8, copy=False)


def _shares(parts: Tensor, wholes: Tensor) -> tuple[float | None, ...]:
    # Python integers divide exactly rounded, however large the counts are.
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return tuple(part / whole if whole else None for part, whole in pairs)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
