"""Is a model better than another? The difference of their mean IoU, with a bootstrap interval that is paired by image.

Images are drawn with replacement, the same for both models, and the mean IoU of each draw is that of its summed counts
(Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3: the percentile interval).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import DatasetError, unknown_name
from resnest_seg.evaluation.image_scores import ImageScoresFile
from resnest_seg.evaluation.metrics import POLICIES

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
"""Number of draws of a bootstrap, share of the intervals that hold the truth, and seed of the draws."""

_DRAWS = 1 << 22  # numbers that are drawn at a time: 32 MiB


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of mean IoU and its interval, in shares -1..1.

    Attributes:
        protocol: Name of the protocol.
        value: The new model's mean IoU minus the old one's.
        low: Lower end of the interval.
        high: Upper end of the interval.
        images: Number of images.
        level: Share of such intervals that hold the true difference.
        resamples: Number of draws.
    """

    protocol: str
    value: float
    low: float
    high: float
    images: int
    level: float = LEVEL
    resamples: int = RESAMPLES

    @property
    def significant(self) -> bool:
        """True if the interval does not hold 0; false of a single image, which has no interval."""
        return self.images > 1 and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        if self.images < 2:
            return f"{self.protocol}: no interval from {self.images} image{'s' * (self.images != 1)}"
        interval = f"{self.level:.0%}: {100 * self.low:+.2f} to {100 * self.high:+.2f}".replace("%", " %")
        drawn = f"{interval}, {self.resamples:,} resamples of {self.images:,} images"
        if not self.significant:
            return f"{self.protocol}: no significant difference, {100 * self.value:+.2f} points of mIoU ({drawn})"
        word, half = "better" if self.value > 0 else "worse", 50 * (self.high - self.low)
        return f"{self.protocol}: {word} by {100 * abs(self.value):.2f} +- {half:.2f} points of mIoU ({drawn})"


def mean_ious(counts: NDArray[np.float64], *, absent: str) -> NDArray[np.float64]:
    """Compute the mean IoU of summed counts.

    Args:
        counts: [..., K, 3]: intersection, truth and prediction of every class.
        absent: Policy for classes without any: "skipped" or "zero", see `resnest_seg.evaluation.metrics.POLICIES`.

    Returns:
        [...]; 0 where all classes are absent.

    Raises:
        ConfigError: Unknown policy.
    """
    if absent not in POLICIES:
        raise unknown_name("policy for absent classes", absent, POLICIES)
    intersections, unions = counts[..., 0], counts[..., 1] + counts[..., 2] - counts[..., 0]
    ious = intersections / np.maximum(unions, 1)
    present = (unions > 0).sum(axis=-1) if absent == "skipped" else counts.shape[-2]
    means: NDArray[np.float64] = ious.sum(axis=-1) / np.maximum(present, 1)
    return means


def resampled_mean_ious(
    counts: NDArray[np.int64], *, absent: str = "skipped", resamples: int = RESAMPLES, seed: int = SEED
) -> NDArray[np.float64]:
    """Compute the mean IoU of random draws of N images with replacement.

    The draws depend on N and the seed alone, so that two models' results for the same images are paired.

    Args:
        counts: [N, K, 3], N at least 1; see `ImageScoresFile.counts`.
        absent: See `mean_ious`.
        resamples: R, number of draws.
        seed: Of the draws.

    Returns:
        [R].
    """
    images, classes = counts.shape[:2]
    flat = counts.reshape(images, -1).astype(np.float64)  # whole numbers below 2^53, whose sums are exact
    parts = []
    for weights in _weights(images, resamples, seed):
        parts.append(mean_ious((weights @ flat).reshape(-1, classes, 3), absent=absent))
    return np.concatenate(parts)


def _weights(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn, [r, N]; together for all resamples."""
    random, at_once = np.random.default_rng(seed), max(_DRAWS // images, 1)
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = random.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def mean_iou_interval(
    counts: NDArray[np.int64], *, absent: str = "skipped", level: float = LEVEL, seed: int = SEED
) -> tuple[float, float]:
    """Return the interval of one model's mean IoU by the percentiles of `resampled_mean_ious`; counts as there."""
    return _percentiles(resampled_mean_ious(counts, absent=absent, seed=seed), level)


def compare_counts(
    before: NDArray[np.int64], now: NDArray[np.int64], *, protocol: str, absent: str = "skipped", seed: int = SEED
) -> Difference:
    """Compute the difference of two models' mean IoU on the same images, from the first to the second.

    Args:
        before: [N, K, 3], see `ImageScoresFile.counts`.
        now: The same images, in the same order.
        protocol: Name of the protocol.
        absent: See `mean_ious`.
        seed: Of the draws.
    """
    assert before.shape == now.shape, (before.shape, now.shape)
    totals = [float(mean_ious(counts.sum(axis=0).astype(np.float64), absent=absent)) for counts in (before, now)]
    value = totals[1] - totals[0]
    if len(before) < 2:
        return Difference(protocol, value, value, value, len(before))
    drawn = [resampled_mean_ious(counts, absent=absent, seed=seed) for counts in (before, now)]
    return Difference(protocol, value, *_percentiles(drawn[1] - drawn[0], LEVEL), len(before))


def compare_images(
    before: str | Path, now: str | Path, *, protocol: str, absent: str = "skipped", seed: int = SEED
) -> Difference:
    """Compute the difference of mean IoU of two files of scores by image, paired by the images.

    Args:
        before: The file of the old model.
        now: The file of the new model.
        protocol: Name of a protocol of both.
        absent: See `mean_ious`.
        seed: Of the draws.

    Raises:
        DatasetError: A file cannot be read; or images, labels or classes differ, and the message says which.
    """
    files = ImageScoresFile(before), ImageScoresFile(now)
    if files[0].header.classes != files[1].header.classes:
        raise DatasetError(f"{before} and {now} have different classes: their images cannot be compared.")
    names, counts = zip(*(file.counts(protocol) for file in files), strict=True)
    where = [dict(pairs) for pairs in names]
    for index in sorted(where[0].keys() | where[1].keys()):
        one, two = where[0].get(index), where[1].get(index)
        if one != two:
            there, here = ("no such image" if name is None else repr(name) for name in (one, two))
            raise DatasetError(
                f"{before} ({len(where[0])} images) and {now} ({len(where[1])}) are not of the same images: the first "
                f"difference is image {index}, {there} there and {here} here. Evaluate both on the same split, with "
                "the same --limit."
            )
    sorted_counts = [each[np.argsort([index for index, _ in pairs])] for pairs, each in zip(names, counts, strict=True)]
    differ = (sorted_counts[0][..., 1] != sorted_counts[1][..., 1]).any(axis=1)
    if differ.any():
        index = sorted(where[0])[int(differ.argmax())]
        raise DatasetError(
            f"the labels of {int(differ.sum())} images differ between {before} and {now}, first of image {index}, "
            f"{where[0][index]!r}: the masks were changed in between. Evaluate the old model again."
        )
    return compare_counts(*sorted_counts, protocol=protocol, absent=absent, seed=seed)


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
