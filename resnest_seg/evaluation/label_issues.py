"""Doubtful labels by confident learning: how sure a model is of the labels it was given, pixel by pixel.

Three measures, which agree with cleanlab's (Northcutt et al., "Confident Learning", JAIR 2021; Lad and Mueller,
"Estimating label errors in segmentation", 2023) and stream, so that they take images of any size and number:

- the self-confidence of a pixel: the probability that the model gives to the pixel's label;
- the score of an image: the soft minimum of its self-confidences;
- the issues: as many of the lowest self-confidences as there are pixels at which the model is confident of another
  class, but for those at which the label is the most probable class after all. The model is confident of class k
  where it gives k a probability of at least the mean that it gives to k where k is the label.

Ignored pixels are in none of them. For the issues, probabilities are kept in 16 bits: a pixel whose probability is
within 1 / 65535 of a threshold may fall on its other side.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.labels import IGNORE_LABEL

TEMPERATURE = 0.1
"""Of the soft minimum: with a lower one, fewer pixels decide the score of an image."""

LEVELS = 65535
"""Probability 1 in the 16 bits in which probabilities are kept."""

TOLERANCE, LOWEST_THRESHOLD = 1e-6, 2e-6
"""How far below its threshold a probability may be; and the lowest threshold, that of a class without a pixel."""


def to_levels(probabilities: NDArray[Any]) -> NDArray[np.uint16]:
    """Probabilities 0..1 in 16 bits."""
    return np.rint(np.asarray(probabilities, np.float64) * LEVELS).astype(np.uint16)


class SoftMinimum:
    """The soft minimum of values 0..1 that come in parts: their mean, in which low ones weigh more.

    A value s weighs exp((1 - s) / TEMPERATURE): 0 as much as 22026 times 1.
    """

    def __init__(self) -> None:
        self._values = self._weights = 0.0

    def update(self, values: NDArray[Any]) -> None:
        """Add values 0..1 of any shape."""
        values = np.asarray(values, np.float64)
        weights = np.exp((1 - values) / TEMPERATURE)
        self._values += float((weights * values).sum())
        self._weights += float(weights.sum())

    @property
    def value(self) -> float | None:
        """The soft minimum, 0..1; None of no values."""
        return self._values / self._weights if self._weights else None


class ConfidentLearning:
    """Counts from which the issues among the labels of a data set follow; they take half a MiB a class.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros(num_classes, np.int64)
        self._sums = np.zeros(num_classes)
        self._lowest = np.zeros(LEVELS + 1, np.int64)
        self._confident = np.zeros((num_classes, LEVELS + 1), np.int64)

    def update(
        self,
        given: NDArray[Any],
        self_confidence: NDArray[np.float32],
        predicted: NDArray[Any],
        confidence: NDArray[np.float32],
    ) -> None:
        """Count labelled pixels [n].

        Args:
            given: Their labels, 0..K-1.
            self_confidence: The probabilities of these labels.
            predicted: Their most probable classes.
            confidence: The probabilities of those.
        """
        classes = len(self.counts)
        self.counts += np.bincount(given, minlength=classes)
        self._sums += np.bincount(given, weights=self_confidence, minlength=classes)
        self._lowest += np.bincount(to_levels(self_confidence), minlength=LEVELS + 1)
        other = predicted != given
        np.add.at(self._confident, (predicted[other], to_levels(confidence[other])), 1)

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """The probability from which the model is confident of each class, [K]."""
        return np.maximum(self._sums / np.maximum(self.counts, 1), LOWEST_THRESHOLD)

    @property
    def confident(self) -> int:
        """Number of pixels at which the model is confident of another class than the label."""
        first = np.ceil((self.thresholds - TOLERANCE) * LEVELS - 0.5).astype(np.int64)
        return sum(int(row[level:].sum()) for row, level in zip(self._confident, first, strict=True))

    @property
    def cutoff(self) -> int:
        """The highest self-confidence of an issue, in `LEVELS`; -1 if there is none."""
        wanted = self.confident
        return int(np.searchsorted(np.cumsum(self._lowest), wanted)) if wanted else -1


class JudgedLabels(NamedTuple):
    """What a model says of the labels of an image.

    Attributes:
        given: The labels, uint8 [H, W], 0..K-1 or `IGNORE_LABEL`.
        predicted: The most probable classes, uint8 [H, W].
        self_confidence: Probability of the label in `LEVELS`, uint16 [H, W].
        confidence: Probability of the most probable class, likewise.
    """

    given: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    self_confidence: NDArray[np.uint16]
    confidence: NDArray[np.uint16]

    def part(self, rows: slice, columns: slice) -> JudgedLabels:
        """Those of a part of the image."""
        here = rows, columns
        return JudgedLabels(self.given[here], self.predicted[here], self.self_confidence[here], self.confidence[here])

    @property
    def disagreement(self) -> NDArray[np.bool_]:
        """Labelled pixels of which the model says another class, [H, W]."""
        found: NDArray[np.bool_] = (self.given != self.predicted) & (self.given != IGNORE_LABEL)
        return found

    def issues(self, cutoff: int) -> NDArray[np.bool_]:
        """The pixels whose labels are issues by `ConfidentLearning.cutoff`, [H, W]."""
        found: NDArray[np.bool_] = self.disagreement & (self.self_confidence.astype(np.int64) <= cutoff)
        return found


class DoubtfulRegion(NamedTuple):
    """A connected area of pixels with one label, of which the model says one other class.

    Attributes:
        given: The label.
        predicted: The model's class.
        box: Left, top, width and height in pixels.
        area: Pixels.
        issues: How many of them are issues of confident learning.
        confidence: Mean probability of the model's class.
        self_confidence: Mean probability of the label.
        width: Diameter in pixels of the largest disc within the area: thin ones lie along outlines.
    """

    given: int
    predicted: int
    box: tuple[int, int, int, int]
    area: int
    issues: int
    confidence: float
    self_confidence: float
    width: float

    @property
    def score(self) -> float:
        """Evidence that the label is wrong, by which regions are ranked: pixels times log odds of the mean pixel.

        In `tests/campaigns/label_errors.py` it found more planted errors than the area, the margin, the width and
        their products.
        """
        return self.area * math.log((self.confidence + FLOOR) / (self.self_confidence + FLOOR))


FLOOR = 1e-3
"""What is added to both probabilities of the log odds, so that no pixel is proof."""


class FoundRegions(NamedTuple):
    """The regions of an image.

    Attributes:
        regions: In no order.
        small: How many were smaller than the smallest that counts, and are not among them.
        mask: The pixels of the regions, bool [H, W].
    """

    regions: list[DoubtfulRegion]
    small: int
    mask: NDArray[np.bool_]


def doubtful_regions(judged: JudgedLabels, cutoff: int, *, min_area: int) -> FoundRegions:
    """Find the connected areas of disagreement in an image: pixels of one class pair that are joined by their sides.

    Args:
        judged: The image.
        cutoff: Of the issues, see `ConfidentLearning`.
        min_area: Regions of fewer pixels are left out.
    """
    other, issues = judged.disagreement, judged.issues(cutoff)
    numbers, boxes = _components(np.where(other, judged.given.astype(np.int32) * 256 + judged.predicted, -1))
    flat, count = numbers[other], len(boxes)
    areas = np.bincount(flat, minlength=count)
    sums = [np.bincount(flat, weights=values[other], minlength=count)
            for values in (issues, judged.confidence, judged.self_confidence)]  # fmt: skip
    large = areas >= min_area
    large[0] = False  # what is in no component
    mask, found = large[numbers], list[DoubtfulRegion]()
    for number in np.flatnonzero(large).tolist():
        left, top, width, height = (int(value) for value in boxes[number])
        here = numbers[top : top + height, left : left + width] == number
        row, column = np.unravel_index(int(here.argmax()), here.shape)
        radius = float(cv2.distanceTransform(np.pad(here, 1).astype(np.uint8), cv2.DIST_L2, 3).max())
        issue, confidence, self_confidence = (float(values[number]) for values in sums)
        found.append(
            DoubtfulRegion(
                int(judged.given[top + row, left + column]),
                int(judged.predicted[top + row, left + column]),
                (left, top, width, height),
                int(areas[number]),
                int(issue),
                confidence / areas[number] / LEVELS,
                self_confidence / areas[number] / LEVELS,
                2 * radius - 1,
            )
        )
    return FoundRegions(found, int((areas[1:] > 0).sum()) - len(found), mask)


def _components(values: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Number the areas of equal values that are joined by sides, all values at once.

    OpenCV knows two values only: on a grid of twice the size, the cell between two equal neighbours is set, and none
    between different ones.

    Args:
        values: [H, W]; -1 is in no area.

    Returns:
        The number of every pixel's area, [H, W], 0 for none; and left, top, width and height of each, [N + 1, 4].
    """
    height, width = values.shape
    grid = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    known = values >= 0
    grid[::2, ::2] = known
    grid[::2, 1::2] = known[:, 1:] & (values[:, 1:] == values[:, :-1])
    grid[1::2, ::2] = known[1:] & (values[1:] == values[:-1])
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(grid, connectivity=4)
    boxes = np.array(stats[:, :4], np.int32)
    boxes[:, :2] //= 2
    boxes[:, 2:] = (boxes[:, 2:] + 1) // 2
    return numbers[::2, ::2], boxes
