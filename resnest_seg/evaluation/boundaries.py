"""Boundary IoU and boundary F-score, summed over images in constant memory.

Both evaluate the pixels of a class's mask near its contour. A pixel of a mask is in its *boundary region* of width d
if a pixel at most d rows and d columns away is not in the mask; pixels outside the image are in no mask. Eroding the
mask d times by 3 x 3 pixels with a border of zeros removes exactly this region, as in the code of Cheng et al.

Pixels labelled `IGNORE_LABEL` are removed from truth and prediction, because their class is unknown. If a mask ends at
ignored pixels, its true contour may run there or beyond. So this boundary is *open*: it counts neither as a miss nor
as a false detection. The *closed* boundary, towards pixels of another class or the edge of the image, is evaluated. It
is correct where the other mask has a boundary, closed or open: a contour predicted close to ignored pixels at which
the true mask ends is not an error. The definition is symmetric in truth and prediction. If ignored pixels were another
class, a mask would be rewarded or penalised for ending at them; without open boundaries, contours beside the
unlabelled rims of Pascal VOC's objects would all be wrong. Without ignored pixels these are the published metrics.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config_types import check_option
from resnest_seg.labels import IGNORE_LABEL

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

STEPS = 1 << 36
"""F-scores are summed as whole numbers of 1 / 2**36: the sum of a hundred million images is exact in any order."""


@dataclasses.dataclass(frozen=True)
class BoundaryReport:
    """Boundary scores, 0..1. A class without a closed boundary has the score None and is left out of the means.

    Attributes:
        mean_boundary_iou: Mean boundary IoU over the classes with a score; 0 without any.
        mean_boundary_f: Mean boundary F-score over the classes with a score; 0 without any.
        class_boundary_iou: Intersection over union of the true and predicted boundary regions of all images, by class.
        class_boundary_f: Mean, over the images in which the class is labelled or predicted, of the F-score of its
            contours, by class.
        width: Width of the boundary region, as a share of an image's diagonal.
        tolerance: Maximum distance of matching contour pixels, as a share of an image's diagonal.
    """

    mean_boundary_iou: float
    mean_boundary_f: float
    class_boundary_iou: tuple[float | None, ...]
    class_boundary_f: tuple[float | None, ...]
    width: float
    tolerance: float


class BoundaryScores:
    """Sums of boundary intersections, unions and F-scores by class, in constant memory.

    Boundary IoU: Cheng et al., https://arxiv.org/abs/2103.16562, with counts summed over images as for the mean IoU.

    F-score: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013: of an image and
    class, precision is the share of predicted contour pixels (the boundary region of width 1) with a true one within
    the tolerance, by Euclidean distance, and recall the converse; 1 if there are no closed contour pixels. The F-score
    is their harmonic mean, and 0 if the class is only labelled or only predicted.

    Args:
        num_classes: K, at most 255.
        width: Width of the boundary region, as a share of the image's diagonal, in (0, 1]; rounded to at least 1 pixel.
        tolerance: Tolerance of the F-score, as a share of the image's diagonal, not rounded; 0..0.05, as the time grows
            with its square.
        device: Device of the sums. The computation runs on the CPU.

    Attributes:
        state: The tensors to sum over processes: intersections, unions and images with the class, int64 [3, K], and the
            sum of F-scores in `STEPS`, int64 [K]. Assign the sums.

    Raises:
        ConfigError: `width` or `tolerance` is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: float = 0.02,
        tolerance: float = 0.0075,
        device: torch.device | str = "cpu",
    ) -> None:
        assert 1 <= num_classes <= IGNORE_LABEL, num_classes
        check_option("the boundary width, as a share of an image's diagonal,", width, 0, 1, above=True)
        check_option("the boundary tolerance, as a share of an image's diagonal,", tolerance, 0, 0.05)
        self.width, self.tolerance = width, tolerance
        self.state = [
            torch.zeros(3, num_classes, dtype=torch.int64, device=device),
            torch.zeros(num_classes, dtype=torch.int64, device=device),
        ]

    def update(self, labels: Tensor, predictions: Tensor) -> BoundaryScores:
        """Add images; returns itself.

        Args:
            labels: [H, W] or [N, H, W], 0..K-1 or `IGNORE_LABEL`, any integer type.
            predictions: The same shape, 0..K-1; any value where the label is ignored.
        """
        assert labels.shape == predictions.shape, (labels.shape, predictions.shape)
        assert labels.ndim in (2, 3), labels.shape
        counts, sums = self.state
        size = labels.shape[-2:]
        every = (ids.to("cpu", torch.uint8).reshape(-1, *size).numpy() for ids in (labels, predictions))
        for truth, prediction in zip(*every, strict=True):
            ignored = truth == IGNORE_LABEL
            pair = _Pair(truth, np.where(ignored, np.uint8(IGNORE_LABEL), prediction))
            assert np.array_equal(pair.prediction == IGNORE_LABEL, ignored), "a prediction of IGNORE_LABEL"
            images, scores = contour_f(pair, tolerance=self.tolerance * math.hypot(*size))
            parts = boundary_counts(pair, reach=max(round(self.width * math.hypot(*size)), 1))
            every_count, classes = np.stack([*parts, images]), counts.shape[1]
            strangers = int(every_count[2, classes:].sum())
            assert not strangers, f"{strangers} ids of labels or predictions are none of {classes} classes"
            counts += torch.from_numpy(every_count[:, :classes]).to(counts.device)
            sums += torch.from_numpy(np.rint(scores[:classes] * STEPS).astype(np.int64)).to(sums.device)
        return self

    def report(self) -> BoundaryReport:
        """Compute the scores of all images added so far."""
        (intersections, unions, images), sums = self.state[0].tolist(), self.state[1].tolist()
        iou = tuple(part / whole if whole else None for part, whole in zip(intersections, unions, strict=True))
        f = tuple(total / STEPS / count if count else None for total, count in zip(sums, images, strict=True))
        return BoundaryReport(_mean(iou), _mean(f), iou, f, self.width, self.tolerance)


class _Pair(NamedTuple):
    """Truth and prediction of one image, [H, W], with `IGNORE_LABEL` at ignored pixels in both."""

    truth: Labels
    prediction: Labels


class _Boundaries(NamedTuple):
    """Masks [H, W] of the boundary regions of all classes.

    Attributes:
        truth: Closed boundary of the truth.
        prediction: Closed boundary of the prediction.
        open: Open boundary of both: pixels near an ignored pixel.
    """

    truth: Mask
    prediction: Mask
    open: Mask


def boundary_counts(pair: _Pair, *, reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count intersection and union, by id [255], of the true and predicted boundary regions `reach` pixels wide."""
    truth, prediction, loose = _boundaries(pair, reach)
    same = pair.truth == pair.prediction
    both, either = truth & prediction & same, (truth | prediction) & same
    intersections = _count(pair.truth[both | (either & loose)])
    unions = _count(pair.truth[truth]) + _count(pair.prediction[prediction]) - _count(pair.truth[both])
    return intersections, unions


def contour_f(pair: _Pair, *, tolerance: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return, by id [255], 1 if it occurs in truth or prediction, and the F-score of its contours, 0 if absent."""
    truth, prediction, loose = _boundaries(pair, 1)
    labelled, predicted = _count(pair.truth) > 0, _count(pair.prediction) > 0
    precision = _shares_within(_only(pair.prediction, prediction), _only(pair.truth, truth | loose), tolerance)
    recall = _shares_within(_only(pair.truth, truth), _only(pair.prediction, prediction | loose), tolerance)
    total = precision + recall
    occurs_twice = labelled & predicted & (total > 0)
    scores = np.divide(2 * precision * recall, total, out=np.zeros(IGNORE_LABEL), where=occurs_twice)
    return (labelled | predicted).astype(np.int64), scores


def _boundaries(pair: _Pair, reach: int) -> _Boundaries:
    """Compute the boundaries of all classes at once, so that the time does not depend on their number."""
    labelled = pair.truth != IGNORE_LABEL
    loose = np.zeros_like(labelled)
    if not labelled.all():
        loose = cv2.dilate((~labelled).view(np.uint8), _SQUARE, iterations=reach).view(np.bool_) & labelled
    return _Boundaries(_closed(pair.truth, reach) & labelled, _closed(pair.prediction, reach) & labelled, loose)


def _closed(ids: Labels, reach: int) -> Mask:
    """True, [H, W], where a pixel of another class or the outside is within `reach` rows and columns."""
    # A neighbourhood has one class if its lowest id equals its highest. Ignored pixels must be neither: 255 is above
    # every id, and as 255 + 1 is 0 in bytes, below every id + 1.
    lowest = cv2.erode(ids, _SQUARE, iterations=reach)
    highest = cv2.dilate(ids + np.uint8(1), _SQUARE, iterations=reach)
    mixed: Mask = highest - lowest != 1
    mixed[:reach] = mixed[-reach:] = True
    mixed[:, :reach] = mixed[:, -reach:] = True
    return mixed


def _only(ids: Labels, mask: Mask) -> Labels:
    """Return the ids inside the mask and `IGNORE_LABEL` elsewhere, [H, W]."""
    return np.where(mask, ids, np.uint8(IGNORE_LABEL))


def _shares_within(points: Labels, targets: Labels, tolerance: float) -> NDArray[np.float64]:
    """Return, by id [255], the share of its points with a target of this id at most `tolerance` pixels away.

    Points and targets are ids [H, W] with `IGNORE_LABEL` elsewhere; an id without points has 1.

    Offsets are tried for all points of all classes at once, nearest first, until every point has a match. Few pixels
    are points and most have a target close by; a distance map for each class takes ten times as long.
    """
    reach, limit = int(tolerance + 1e-6), tolerance * tolerance + 1e-6  # integer squares must not fail by rounding
    wide = cv2.copyMakeBorder(targets, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=IGNORE_LABEL)
    rows, columns = np.nonzero(points != IGNORE_LABEL)
    positions, ids = (rows + reach) * wide.shape[1] + columns + reach, points[rows, columns]
    total, around = _count(ids), range(-reach, reach + 1)
    steps = sorted((down**2 + right**2, down * wide.shape[1] + right) for down in around for right in around)
    for square, step in steps:
        if square > limit or not ids.size:
            break
        alone = wide.ravel().take(positions + step) != ids
        positions, ids = positions[alone], ids[alone]
    shares: NDArray[np.float64] = np.divide(total - _count(ids), total, out=np.ones(IGNORE_LABEL), where=total > 0)
    return shares


def _count(ids: Labels) -> NDArray[np.int64]:
    """Count pixels by id [255], without the ignored ones."""
    counts: NDArray[np.int64] = np.bincount(ids.ravel(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
    return counts


def _mean(values: tuple[float | None, ...]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


_SQUARE = np.ones((3, 3), np.uint8)
