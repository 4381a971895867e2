"""Segmentation metrics computed exactly from an int64 confusion matrix."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.labels import IGNORE_LABEL

POLICIES = {"skipped": "mean_iou", "zero": "mean_iou_absent_zero"}
"""Policy for absent classes -> attribute of `Scores`. Classes absent from labels and predictions are skipped in the
mean IoU of mmsegmentation, and count as 0 in that of PyTorch-Encoding and PaddleSeg."""

_CODES = 256  # labels and predictions are bytes: classes 0..254 and IGNORE_LABEL
_EXACT = 2**24  # OpenCV returns counts as float32, which are exact up to here


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics, 0..1. For a class absent from labels and predictions, IoU and Dice are None.

    Attributes:
        mean_iou: Mean IoU over the classes present in labels or predictions (mmsegmentation's policy).
        mean_iou_absent_zero: Mean IoU with absent classes counted as 0 (PyTorch-Encoding's and PaddleSeg's policy).
        pixel_accuracy: Share of labelled pixels predicted correctly.
        mean_accuracy: Mean of `class_accuracy` over the classes present in the labels.
        class_iou: Intersection over union, by class.
        class_accuracy: Share of a class's labelled pixels predicted correctly, by class; None without pixels.
        class_share: Share of all labelled pixels, by class.
        frequency_weighted_iou: Sum over the classes of share times IoU (Long et al., https://arxiv.org/abs/1411.4038);
            a class without labelled pixels has weight 0.
        class_dice: Twice the intersection divided by the sum of labelled and predicted pixels, by class (F1 of pixels).
        mean_dice: Mean Dice over the classes present in labels or predictions (policy "skipped").
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
        """Return the mean IoU by a policy for absent classes: "skipped" or "zero", see `POLICIES`.

        Raises:
            ConfigError: Unknown policy.
        """
        if policy not in POLICIES:
            raise unknown_name("policy for absent classes", policy, POLICIES)
        mean: float = getattr(self, POLICIES[policy])
        return mean


@dataclasses.dataclass(frozen=True)
class Confusion:
    """One off-diagonal entry of the confusion matrix.

    Attributes:
        label: The true class.
        prediction: The predicted class.
        pixels: Number of pixels.
        share: Share of the true class's pixels, 0..1.
    """

    label: int
    prediction: int
    pixels: int
    share: float


class ConfusionMatrix:
    """Confusion matrix: counts of (label, prediction) pairs.

    Pixels labelled `IGNORE_LABEL` are ignored.

    Args:
        num_classes: K, at most 255.
        device: Device of the counts; labels and predictions are moved there.

    Raises:
        ConfigError: There are not 1..255 classes.

    Attributes:
        counts: int64 [K, K]; rows are labels, columns predictions.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        check_option("num_classes", num_classes, 1, _CODES - 1)
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @property
    def state(self) -> list[Tensor]:
        """The tensors to sum over processes; assign the sums: `matrix.state = [total(x) for x in matrix.state]`."""
        return [self.counts]

    @state.setter
    def state(self, state: list[Tensor]) -> None:
        """The sums."""
        (self.counts,) = state

    def update(self, labels: Tensor | NDArray[Any], predictions: Tensor | NDArray[Any]) -> ConfusionMatrix:
        """Count pixels; returns itself.

        Args:
            labels: Any shape, 0..K-1 or `IGNORE_LABEL`; a tensor or NumPy array of any integer type.
            predictions: The same shape, 0..K-1, of any integer type; any value in 0..255 where the label is ignored.

        Raises:
            ConfigError: The shapes differ, the values are no whole numbers, or an id is out of range.
        """
        truth, found = _ids(labels, "labels"), _ids(predictions, "predictions")
        if truth.shape != found.shape:
            hint = " Give classes, not scores: scores.argmax(1)." if found.dim() == truth.dim() + 1 else ""
            raise ConfigError(
                f"labels and predictions must have one shape, not {list(truth.shape)} and {list(found.shape)}.{hint}"
            )
        classes, device = len(self.counts), self.counts.device
        count = _count_on_cpu if device.type == "cpu" else _count_by_bincount
        counts, strangers = count(truth.to(device).flatten(), found.to(device).flatten(), classes)
        if strangers:
            raise ConfigError(
                f"{strangers} pixels have a label or prediction that is none of {classes} classes: labels must lie in "
                f"0..{classes - 1} or be {IGNORE_LABEL} (ignored), and predictions in 0..{classes - 1}."
            )
        self.counts += counts
        return self

    def scores(self) -> Scores:
        """Compute the metrics of all pixels counted so far; 0 without pixels, never NaN."""
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
        """Return the `limit` most frequent confusions by descending pixels, ties by label and prediction."""
        assert limit >= 0, limit
        counts = self.counts.cpu()
        labelled, mistakes = counts.sum(dim=1).tolist(), counts.clone().fill_diagonal_(0).flatten()
        pixels, indices = mistakes.sort(descending=True, stable=True)
        largest = zip(pixels[:limit].tolist(), indices[:limit].tolist(), strict=True)
        cells = [(*divmod(index, len(counts)), count) for count, index in largest if count]
        return tuple(Confusion(label, other, count, count / labelled[label]) for label, other, count in cells)


def _ids(ids: Tensor | NDArray[Any], name: str) -> Tensor:
    """Ids of any integer type as a tensor of the same shape.

    Raises:
        ConfigError: They are neither a tensor nor an array, are no whole numbers, or do not fit a byte.
    """
    if not isinstance(ids, Tensor | np.ndarray):
        raise ConfigError(f"{name} must be a tensor or a NumPy array of class ids, not {type(ids).__name__}.")
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iub":
            raise ConfigError(f"{name} must be whole numbers (class ids), not {ids.dtype}.")
        ids = torch.from_numpy(np.ascontiguousarray(ids, ids.dtype.newbyteorder("=")))
    if ids.is_floating_point() or ids.is_complex():
        raise ConfigError(f"{name} must be whole numbers (class ids), not {str(ids.dtype).removeprefix('torch.')}.")
    if ids.dtype not in (torch.uint8, torch.bool) and ids.numel():
        low, high = (int(bound) for bound in ids.to(torch.int64).aminmax())
        if low < 0 or high >= _CODES:
            value = low if low < 0 else high
            raise ConfigError(f"{name} must lie in 0..{_CODES - 1}, where {IGNORE_LABEL} is ignored, not {value}.")
    return ids


def _count_by_bincount(labels: Tensor, predictions: Tensor, classes: int) -> tuple[Tensor, int]:
    """Count the pairs of ids [N]: int64 [K, K], and the number of labelled pixels with an id out of range."""
    # Ignored pixels are counted in a row that is dropped: selecting pixels by a mask costs more than counting. A pair
    # fits into 32 bits, which halves the memory traffic.
    pairs = torch.add(predictions.int(), labels.int(), alpha=_CODES)
    counts = torch.bincount(pairs, minlength=_CODES * _CODES)[: _CODES * _CODES].view(_CODES, _CODES)
    kept = counts[:classes, :classes]
    return kept, int(counts[:IGNORE_LABEL].sum() - kept.sum())


def _count_on_cpu(labels: Tensor, predictions: Tensor, classes: int) -> tuple[Tensor, int]:
    """Count pairs as `_count_by_bincount` does, by OpenCV's histogram of two images of bytes.

    It takes one pass on one thread, without intermediate results: synchronising threads costs more on a busy machine.
    """
    rows, columns = _as_bytes(labels), _as_bytes(predictions)
    counts = np.zeros((classes, classes), np.int64)
    for start in range(0, len(rows), _EXACT):
        part = [ids[start : start + _EXACT] for ids in (rows, columns)]
        every = cv2.calcHist(part, [0, 1], None, [_CODES, _CODES], [0, _CODES, 0, _CODES])
        counts += every[:classes, :classes].astype(np.int64)
    return torch.from_numpy(counts), int(np.count_nonzero(rows != IGNORE_LABEL) - counts.sum())


def _as_bytes(ids: Tensor) -> NDArray[np.uint8]:
    return ids.numpy().astype(np.uint8, copy=False)


def _shares(parts: Tensor, wholes: Tensor) -> tuple[float | None, ...]:
    # Division of Python integers is correctly rounded for any counts.
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return tuple(part / whole if whole else None for part, whole in pairs)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
