"""Confidence and entropy of pixels; calibration: expected calibration error, the bins of a reliability diagram."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.labels import IGNORE_LABEL

STEPS = 1 << 24
"""Confidences are summed as whole numbers of 1 / 2**24, the precision of float32 below 1: exact in any order."""


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """The labelled pixels whose confidence is in [low, high).

    Attributes:
        low: Lower edge, inclusive.
        high: Upper edge, exclusive.
        count: Number of pixels.
        accuracy: Share of the pixels predicted correctly, 0..1; None in an empty bin.
        confidence: Mean confidence of the pixels, 0..1; None in an empty bin.
    """

    low: float
    high: float
    count: int
    accuracy: float | None
    confidence: float | None


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """Calibration errors over labelled pixels, 0..1; 0 without labelled pixels, never NaN.

    Attributes:
        expected_calibration_error: Mean over pixels of `|accuracy - confidence|` of their bin (Guo et al.,
            https://arxiv.org/abs/1706.04599).
        maximum_calibration_error: The largest `|accuracy - confidence|` of a bin with pixels.
        bins: The bins by ascending confidence. The last one is for confidences of exactly 1, low = high = 1, as in
            torchmetrics.
    """

    expected_calibration_error: float
    maximum_calibration_error: float
    bins: tuple[ReliabilityBin, ...]


class Calibration:
    """Histogram of confidences and correct predictions, in constant memory.

    Bins have equal widths and contain their lower edge. Confidences that round to 1 have a separate bin, so that
    results equal those of torchmetrics' `MulticlassCalibrationError`. Pixels labelled `IGNORE_LABEL` are ignored.

    Args:
        bins: Number of bins from 0 to 1, at least 1.
        device: Device of the sums, with support for float64; inputs are moved there.

    Attributes:
        state: The tensor to sum over processes, int64 [4, bins + 2]: by bin the pixels, the correct pixels, and the sum
            of confidences as whole numbers and as `STEPS` beyond these, which do not overflow. In the last place are
            the pixels whose confidence is no number. Assign the sum.

    Raises:
        ConfigError: `bins` is less than 1.
    """

    def __init__(self, *, bins: int = 15, device: torch.device | str = "cpu") -> None:
        if bins < 1:
            raise ConfigError(f"calibration needs at least one bin, not {bins}.")
        self.bins = bins
        self.state = [torch.zeros(4, bins + 2, dtype=torch.int64, device=device)]

    def update(self, labels: Tensor, predictions: Tensor, confidences: Tensor) -> Calibration:
        """Count pixels; returns itself.

        Args:
            labels: Any shape, 0..K-1 or `IGNORE_LABEL`, any integer type.
            predictions: The same shape, 0..K-1.
            confidences: The same shape: the probability of the predicted class, 0..1, any float type. Values slightly
                outside, by rounding, are clamped.
        """
        assert labels.shape == predictions.shape == confidences.shape, (labels.shape, confidences.shape)
        assert confidences.is_floating_point(), confidences.dtype
        (state,) = self.state
        labels, predictions = (ids.to(state.device, torch.int32).flatten() for ids in (labels, predictions))
        confidences = confidences.to(state.device).flatten().clamp(0, 1)
        if confidences.dtype != torch.float64:
            confidences = confidences.float()  # half precision cannot represent the edges
        edges = torch.linspace(0, 1, self.bins + 1, dtype=confidences.dtype, device=state.device)
        indices = torch.bucketize(confidences, edges, right=True).sub_(1).clamp_(0, self.bins)
        unknown, ignored = self.bins + 1, self.bins + 2  # the second is dropped
        indices = torch.where(confidences.isnan(), unknown, indices)
        indices = torch.where(labels == IGNORE_LABEL, ignored, indices)
        pixels = torch.bincount(indices, minlength=ignored + 1)
        hits = torch.bincount(torch.where(labels == predictions, indices, ignored), minlength=ignored + 1)
        steps = (confidences.nan_to_num().double() * STEPS).round_()  # whole numbers, whose sum is exact up to 2**53
        summed = torch.bincount(indices, weights=steps, minlength=ignored + 1).long()
        state += torch.stack([pixels, hits, summed // STEPS, summed % STEPS])[:, :ignored]
        return self

    def report(self) -> CalibrationReport:
        """Compute the errors and bins of all pixels counted so far.

        Raises:
            CheckpointError: The confidence of a labelled pixel was NaN.
        """
        (state,) = self.state
        counts, hits, wholes, steps = state[:, :-1].tolist()
        if state[0, -1]:
            raise CheckpointError(
                "calibration: the model's probabilities are not numbers (NaN) for some labelled pixels. Its weights "
                "are corrupt, or activations overflow in this precision: try float32, or another checkpoint."
            )
        sums = [(whole * STEPS + more) / STEPS for whole, more in zip(wholes, steps, strict=True)]
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64).tolist()
        reliability = []
        for index, (count, hit, total) in enumerate(zip(counts, hits, sums, strict=True)):
            high = edges[min(index + 1, self.bins)]
            means = (hit / count, total / count) if count else (None, None)
            reliability.append(ReliabilityBin(edges[index], high, count, *means))
        gaps = [abs(hit - total) for hit, total in zip(hits, sums, strict=True)]
        return CalibrationReport(
            expected_calibration_error=sum(gaps) / max(sum(counts), 1),
            maximum_calibration_error=max(gap / max(count, 1) for gap, count in zip(gaps, counts, strict=True)),
            bins=tuple(reliability),
        )


CACHED = 1 << 17
"""On a CPU, scores are looked at so many at a time: they and what is computed from them stay in its caches, which takes
a third of the time in 150 classes."""


def certainty(scores: Tensor, merge: str, best: Tensor) -> tuple[Tensor, Tensor]:
    """Compute how sure a model is of every pixel of a slab.

    Args:
        scores: [K, r, W] of a protocol, as in `resnest_seg.inference.backends.Block`.
        merge: The protocol's: "logits", "softmax", "exp", or "sigmoid" for labels.
        best: Of classes: the class of the highest score, [r, W].

    Returns:
        The probability of the best class, and the entropy of all probabilities as a share of the largest possible;
        of labels, means over them. float32 [r, W], 0..1 but for rounding.
    """
    if scores.is_cuda:
        return _certainty(scores, merge, best)
    rows = max(CACHED // max(scores[:, 0].numel(), 1), 1)
    pairs = zip(scores.split(rows, dim=1), best.split(rows), strict=True)
    parts = [_certainty(slab, merge, labels) for slab, labels in pairs]
    confidence, entropy = zip(*parts, strict=True)
    return torch.cat(confidence), torch.cat(entropy)


def _certainty(scores: Tensor, merge: str, best: Tensor) -> tuple[Tensor, Tensor]:
    if merge == "sigmoid":
        scores = scores.clamp(0, 1)
        entropy = torch.special.entr(scores) + torch.special.entr(1 - scores)
        return torch.maximum(scores, 1 - scores).mean(dim=0), entropy.mean(dim=0) / math.log(2)
    most = math.log(max(len(scores), 2))
    top = scores.gather(0, best.long()[None])
    if merge == "softmax":
        return top[0], torch.special.entr(scores).sum(dim=0) / most
    if merge == "logits":
        # H = log(sum of e^d) - (sum of d e^d) / (sum of e^d) for logits d below the highest: one exponential a score,
        # and logarithms of pixels only.
        below = scores - top
        parts = below.exp()
        total = parts.sum(dim=0)
        return total.reciprocal(), (total.log() - parts.mul_(below).sum(dim=0) / total) / most
    total = scores.sum(dim=0)
    entropy = total.log() - torch.xlogy(scores, scores).sum(dim=0) / total
    return (top[0] / total).float(), (entropy / most).float()
