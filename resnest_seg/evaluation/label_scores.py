"""Scores of binary and multi-label tasks, from exact counts at every threshold of a histogram.

A histogram of scores by label, of pixels with and without it, gives true and false positives at every threshold at
once: IoU, F1, precision and recall at one of them, the best one, and average precision. Counts are integers, so parts
of a data set may be counted in any order and by any number of processes.

Shapes: K labels, H x W pixels, B bins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config_types import check_option
from resnest_seg.errors import CheckpointError, ConfigError, unknown_name
from resnest_seg.evaluation.metrics import POLICIES, Scores

_ROUNDING = 1e-3  # averages over views leave 0..1 by less; logits by more


class LabelMasks(NamedTuple):
    """Labels as `unpack_labels` returns them.

    Attributes:
        present: Whether a label is present, bool [..., K, H, W]; False where ignored.
        valid: Whether a pixel counts, bool [..., H, W].
    """

    present: Tensor
    valid: Tensor


def unpack_labels(labels: Tensor, num_labels: int, *, ignore_label: int) -> LabelMasks:
    """Unpack the labels of a binary or multi-label task.

    Args:
        labels: [..., H, W] of any integer type: bit k is label k, so 0 and 1 for a binary task.
        num_labels: K; 1 for a binary task.
        ignore_label: Value of ignored pixels: `IGNORE_LABEL` in binary masks, `MULTILABEL_IGNORE` in multi-label ones.
    """
    bits = labels.int()  # torch has no arithmetic for uint16
    valid = bits != ignore_label
    ones = 1 << torch.arange(num_labels, dtype=torch.int32, device=bits.device)[:, None, None]
    return LabelMasks((bits.masked_fill(~valid, 0).unsqueeze(-3) & ones).bool(), valid)


@dataclasses.dataclass(frozen=True)
class LabelScore:
    """Scores of one label, or of all labels' pixels pooled, 0..1.

    Attributes:
        threshold: A pixel is predicted as the label if its score is at least this.
        iou: Intersection over union; None if the label is absent from the labels and the predictions.
        f1: Harmonic mean of precision and recall (Dice); None as for `iou`.
        precision: Share of the predicted pixels that have the label; 0 if the label is present and not predicted, None
            if it is absent from both.
        recall: Share of the label's pixels that are predicted; None if it is absent from the labels.
        average_precision: Sum over descending thresholds of precision times the gain in recall; None as for `recall`.
        best_threshold: The threshold of the largest IoU, which has the largest F1 too, nearest to 0.5 and then the
            lower of equals; None as for `recall`.
        best_iou: IoU at the best threshold; None as for `recall`.
        share: Share of the pixels that have the label.
    """

    threshold: float
    iou: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    average_precision: float | None
    best_threshold: float | None
    best_iou: float | None
    share: float


@dataclasses.dataclass(frozen=True)
class ThresholdCurve:
    """Scores of a label at thresholds from 0 to 1, at most 101 of them, 0..1; see `LabelScore`.

    Attributes:
        thresholds: In ascending order.
        iou: At each of them; None if the label is absent from the labels and the predictions.
        precision: Likewise.
        recall: Likewise; None if the label is absent from the labels.
    """

    thresholds: tuple[float, ...]
    iou: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class LabelScores:
    """Scores of a binary or multi-label task, 0..1; means are over the labels whose score is not None.

    Attributes:
        labels: By label.
        micro: Of all labels' pixels pooled, each label at its threshold (`threshold` is their mean); average precision
            and the best threshold are those of one threshold for all labels.
        mean_iou: Mean IoU over the labels present in labels or predictions.
        mean_iou_absent_zero: Mean IoU with absent labels counted as 0.
        mean_f1: Mean F1.
        mean_precision: Mean precision.
        mean_recall: Mean recall over the labels present in the labels.
        mean_average_precision: Mean average precision over the labels present in the labels; None of a model that gives
            labels only, of whose labels there is no average precision, best threshold and curve.
        images: Number of images that `count_image` counted.
        images_without: Number of these without a pixel of a label, by label.
        curves: Scores at many thresholds, by label; none of labels only, and in reports of older versions.
    """

    labels: tuple[LabelScore, ...]
    micro: LabelScore
    mean_iou: float
    mean_iou_absent_zero: float
    mean_f1: float
    mean_precision: float
    mean_recall: float
    mean_average_precision: float | None
    images: int
    images_without: tuple[int, ...]
    curves: tuple[ThresholdCurve, ...] = ()

    def mean_iou_by(self, policy: str) -> float:
        """Return the mean IoU by a policy for absent labels: "skipped" or "zero", see `metrics.POLICIES`.

        Raises:
            ConfigError: Unknown policy.
        """
        if policy not in POLICIES:
            raise unknown_name("policy for absent classes", policy, POLICIES)
        mean: float = getattr(self, POLICIES[policy])
        return mean

    def as_scores(self, *, pixel_accuracy: float) -> Scores:
        """Convert to the scores that reports of every task have: the classes are the labels, accuracy is recall.

        Args:
            pixel_accuracy: Share of the labelled pixels that have exactly the right labels.
        """
        found = self.labels
        total = sum(label.share for label in found)
        return Scores(
            mean_iou=self.mean_iou,
            mean_iou_absent_zero=self.mean_iou_absent_zero,
            pixel_accuracy=pixel_accuracy,
            mean_accuracy=self.mean_recall,
            class_iou=tuple(label.iou for label in found),
            class_accuracy=tuple(label.recall for label in found),
            class_share=tuple(label.share for label in found),
            frequency_weighted_iou=sum(label.share * (label.iou or 0.0) for label in found) / total if total else 0.0,
            class_dice=tuple(label.f1 for label in found),
            mean_dice=self.mean_f1,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelScores:
        """Rebuild scores from `dataclasses.asdict`, as reports store them; raises KeyError or TypeError for others."""
        apart = ("labels", "micro", "images_without", "curves")
        rest = {key: value for key, value in values.items() if key not in apart}
        return cls(
            labels=tuple(LabelScore(**label) for label in values["labels"]),
            micro=LabelScore(**values["micro"]),
            images_without=tuple(values["images_without"]),
            curves=tuple(
                ThresholdCurve(**{key: tuple(numbers) for key, numbers in curve.items()})
                for curve in values.get("curves", ())
            ),
            **rest,
        )

    def of_labels_only(self) -> LabelScores:
        """The scores without those that need scores of pixels: average precision, the best threshold and curves."""
        *labels, micro = (
            dataclasses.replace(score, average_precision=None, best_threshold=None, best_iou=None)
            for score in (*self.labels, self.micro)
        )
        return dataclasses.replace(self, labels=tuple(labels), micro=micro, mean_average_precision=None, curves=())

    @property
    def best_thresholds(self) -> tuple[float, ...]:
        """The best threshold of each label; where the label is absent, the threshold of the scores."""
        return tuple(s.threshold if s.best_threshold is None else s.best_threshold for s in self.labels)


class ScoreHistogram:
    """Histogram of scores by label, of pixels with and without the label.

    Thresholds are i / bins for i = 0..bins, and a pixel is predicted if its score is at least the threshold. Scores and
    thresholds are compared as float32, as `scores >= 0.3` does for float32 scores; so the counts at every threshold are
    exact.

    Args:
        num_labels: K; 1 for a binary task.
        bins: B, the number of steps between thresholds.
        device: Device of the counts; what is counted is moved there.

    Raises:
        ConfigError: There are not 1..255 labels, or not 1..100000 bins.

    Attributes:
        counts: int64 [2, K, B + 2]: of pixels without and with a label, by bin; the last column has the images without
            and with a pixel of the label. Histograms are merged by adding their counts.
    """

    def __init__(self, num_labels: int, *, bins: int = 1000, device: torch.device | str = "cpu") -> None:
        check_option("num_labels", num_labels, 1, 255)
        check_option("bins", bins, 1, 100_000)
        self.bins = bins
        self.counts = torch.zeros(2, num_labels, bins + 2, dtype=torch.int64, device=device)
        self._edges = torch.from_numpy(_edges(bins).astype(np.float32)).to(device)

    @property
    def state(self) -> list[Tensor]:
        """The tensors to sum over processes; assign the sums: `found.state = [total(x) for x in found.state]`."""
        return [self.counts]

    @state.setter
    def state(self, state: list[Tensor]) -> None:
        """The sums."""
        (self.counts,) = state

    def update(
        self, scores: Tensor | NDArray[Any], present: Tensor | NDArray[Any], valid: Tensor | NDArray[Any]
    ) -> ScoreHistogram:
        """Count the pixels of an image or of a part of it; returns itself.

        Args:
            scores: Probabilities, [K, H, W] of any float type; values slightly outside 0..1, by rounding, are clamped.
            present: Whether a pixel has the label, bool [K, H, W]; any value where ignored.
            valid: Whether a pixel counts, bool [H, W].

        Raises:
            ConfigError: The shapes or types do not match, or a score of a valid pixel is far outside 0..1.
            CheckpointError: A score of a valid pixel is NaN.
        """
        found, truth, counted = (self._tensor(values) for values in (scores, present, valid))
        self._check(found, truth, counted)
        labels, bins = self.counts.shape[1], self.bins + 1
        found = torch.where(counted, found.float(), 0).contiguous()
        if found.numel():
            low, high = found.aminmax()
            _check_range(float(low), float(high))
        indices = torch.bucketize(found.clamp_(0, 1), self._edges, right=True, out_int32=True).sub_(1)
        rows = (
            truth.int().mul_(labels).add_(torch.arange(labels, dtype=torch.int32, device=found.device)[:, None, None])
        )
        codes = torch.where(counted, rows.mul_(bins).add_(indices), 2 * labels * bins)  # the last one is dropped
        counts = torch.bincount(codes.flatten(), minlength=2 * labels * bins + 1)[:-1]
        self.counts[..., :bins] += counts.view(2, labels, bins)
        return self

    def count_image(self, present: Tensor | NDArray[Any], valid: Tensor | NDArray[Any]) -> ScoreHistogram:
        """Count a whole image as one with or without each label; returns itself.

        An image without a valid pixel is not counted. Whole images are counted apart from pixels because those of large
        images are counted by parts.

        Args:
            present: Whether a pixel has the label, bool [K, H, W].
            valid: Whether a pixel counts, bool [H, W].

        Raises:
            ConfigError: The shapes or types do not match.
        """
        truth, counted = (self._tensor(values) for values in (present, valid))
        self._check(None, truth, counted)
        shown = (truth & counted).flatten(1).any(dim=1)
        self.counts[..., -1] += torch.stack([~shown, shown]) & counted.any()
        return self

    def scores(self, threshold: float | Sequence[float] = 0.5) -> LabelScores:
        """Compute the scores of all pixels counted so far; never NaN.

        Args:
            threshold: One for all labels, or K of them, each a multiple of 1 / bins in 0..1.

        Raises:
            ConfigError: A threshold is none of the histogram's (the message names the nearest), or their number is
                not K.
        """
        counts = self.counts.cpu().numpy()
        histograms, images = counts[..., :-1], counts[..., -1]
        labels = counts.shape[1]
        given = [threshold] * labels if isinstance(threshold, int | float) else list(threshold)
        if len(given) != labels:
            raise ConfigError(f"there are {labels} labels and {len(given)} thresholds: give one, or one a label.")
        steps = [self._step(value) for value in given]
        curves = [_Curve.of(histograms[:, label]) for label in range(labels)]
        by_label = tuple(curve.score(step) for curve, step in zip(curves, steps, strict=True))
        return LabelScores(
            labels=by_label,
            micro=_pooled(histograms, curves, steps),
            mean_iou=_mean([score.iou for score in by_label]),
            mean_iou_absent_zero=_mean([score.iou or 0.0 for score in by_label]),
            mean_f1=_mean([score.f1 for score in by_label]),
            mean_precision=_mean([score.precision for score in by_label]),
            mean_recall=_mean([score.recall for score in by_label]),
            mean_average_precision=_mean([score.average_precision for score in by_label]),
            images=int(images[:, 0].sum()),
            images_without=tuple(int(count) for count in images[0]),
            curves=tuple(curve.over_thresholds() for curve in curves),
        )

    def _tensor(self, values: Tensor | NDArray[Any]) -> Tensor:
        """Return a tensor on the device of the counts; torch takes no read-only arrays and no other byte order."""
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ["C", "W"]))
        return values.to(self.counts.device)

    def _step(self, threshold: float) -> int:
        """Return i of the threshold i / bins."""
        check_option("threshold", threshold, 0, 1)
        step = round(threshold * self.bins)
        if abs(step - threshold * self.bins) > 1e-4:
            raise ConfigError(
                f"threshold must be a multiple of 1/{self.bins}, at which pixels are counted, not {threshold}: the "
                f"nearest is {step / self.bins}."
            )
        return step

    def _check(self, scores: Tensor | None, present: Tensor, valid: Tensor) -> None:
        """Refuse shapes and types that do not match."""
        fits = present.shape == (self.counts.shape[1], *valid.shape) and valid.dim() == 2
        if not fits or (scores is not None and scores.shape != present.shape):
            given = "" if scores is None else f"scores {list(scores.shape)}, "
            raise ConfigError(
                f"a histogram of {self.counts.shape[1]} labels takes [K, H, W] and valid [H, W], not {given}present "
                f"{list(present.shape)} and valid {list(valid.shape)}."
            )
        if present.dtype != torch.bool or valid.dtype != torch.bool:
            raise ConfigError(f"present and valid must be bool, not {present.dtype} and {valid.dtype}.")
        if scores is not None and not scores.is_floating_point():
            raise ConfigError(f"scores must be probabilities, float numbers, not {scores.dtype}.")


class _Curve(NamedTuple):
    """True and false positives at every threshold, int64 [B + 1], ascending thresholds; and all pixels."""

    hits: NDArray[np.int64]
    false: NDArray[np.int64]

    @classmethod
    def of(cls, histogram: NDArray[np.int64]) -> _Curve:
        """Sum a histogram [2, B + 1] from the last bin down."""
        false, hits = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
        return cls(hits, false)

    def ious(self) -> NDArray[np.float64]:
        """Return the IoU at every threshold, [B + 1]; 0 without pixels."""
        ious: NDArray[np.float64] = self.hits / np.maximum(self.hits[0] + self.false, 1)
        return ious

    def score(self, step: int) -> LabelScore:
        """Score at the threshold step / B."""
        bins, positives = len(self.hits) - 1, int(self.hits[0])
        counts = int(self.hits[step]), int(self.false[step])
        best = self._best() if positives else None
        return LabelScore(
            threshold=step / bins,
            **_ratios(*counts, positives),
            average_precision=self._average_precision() if positives else None,
            best_threshold=None if best is None else best / bins,
            best_iou=None if best is None else float(self.ious()[best]),
            share=positives / max(positives + int(self.false[0]), 1),
        )

    def over_thresholds(self) -> ThresholdCurve:
        """Score at every threshold, or at 101 of them."""
        bins, positives = len(self.hits) - 1, int(self.hits[0])
        steps = sorted({round(place * bins / min(bins, 100)) for place in range(min(bins, 100) + 1)})
        scores = [_ratios(int(self.hits[step]), int(self.false[step]), positives) for step in steps]
        iou, precision, recall = (tuple(one[key] for one in scores) for key in ("iou", "precision", "recall"))
        return ThresholdCurve(tuple(step / bins for step in steps), iou, precision, recall)

    def _best(self) -> int:
        ious, bins = self.ious(), len(self.hits) - 1
        equals = np.flatnonzero(ious == ious.max())
        return int(min(equals, key=lambda step: (abs(2 * step - bins), step)))

    def _average_precision(self) -> float:
        precisions = self.hits / np.maximum(self.hits + self.false, 1)
        gains = self.hits - np.append(self.hits[1:], 0)
        return float((gains * precisions).sum() / self.hits[0])


def _pooled(histograms: NDArray[np.int64], curves: list[_Curve], steps: list[int]) -> LabelScore:
    """Score all labels' pixels together, each label at its own threshold."""
    together = _Curve.of(histograms.sum(axis=1)).score(0)
    hits = sum(int(curve.hits[step]) for curve, step in zip(curves, steps, strict=True))
    false = sum(int(curve.false[step]) for curve, step in zip(curves, steps, strict=True))
    positives = sum(int(curve.hits[0]) for curve in curves)
    threshold = sum(steps) / len(steps) / (histograms.shape[2] - 1)
    return dataclasses.replace(together, threshold=threshold, **_ratios(hits, false, positives))


def _ratios(hits: int, false: int, positives: int) -> dict[str, Any]:
    """IoU, F1, precision and recall of counts; division of Python integers is correctly rounded."""
    either = positives + false
    return {
        "iou": hits / either if either else None,
        "f1": 2 * hits / (hits + either) if either else None,
        "precision": hits / max(hits + false, 1) if either else None,
        "recall": hits / positives if positives else None,
    }


def _edges(bins: int) -> NDArray[np.float64]:
    """Return the thresholds i / bins, [bins + 1]."""
    edges: NDArray[np.float64] = np.arange(bins + 1) / bins
    return edges


def _check_range(low: float, high: float) -> None:
    """Refuse what is no probability."""
    if np.isnan(low) or np.isnan(high):
        raise CheckpointError(
            "the model's scores are not numbers (NaN) for some labelled pixels. Its weights are corrupt, or "
            "activations overflow in this precision: try float32, or another checkpoint."
        )
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ConfigError(
            f"scores must be probabilities in 0..1, and they lie in {low:.4g}..{high:.4g}: give sigmoid(logits)."
        )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
