"""Drawn scenes with label errors of known kind and place."""

import cv2
import numpy as np
from scipy import ndimage

from resnest_seg.data.datasets import SegmentationDataset

KINDS = ("swapped class", "shifted mask", "missing object", "ragged edge")


class PlantedErrors(SegmentationDataset):
    """A data set in some of whose samples one object is labelled wrongly.

    Args:
        inner: The data set with right labels.
        share: Of the samples, for each kind of error.
        seed: Chooses samples and objects.

    Attributes:
        kinds: Index of a sample with an error -> its kind.
    """

    def __init__(self, inner, *, share=0.05, seed=0):
        self.inner, self.seed = inner, seed
        self.label_space, self.split = inner.label_space, inner.split
        order = np.random.default_rng(seed).permutation(len(inner)).tolist()
        count = round(share * len(inner))
        self.kinds = {}
        for kind in KINDS:
            found = 0
            while found < count:
                index = order.pop()
                if plant(inner[index].labels, kind, np.random.default_rng([seed, index])) is not None:
                    self.kinds[index] = kind
                    found += 1

    def __len__(self):
        return len(self.inner)

    def sample_name(self, index):
        return self.inner.sample_name(index)

    def __getitem__(self, index):
        sample = self.inner[index]
        if index not in self.kinds:
            return sample
        return sample._replace(
            labels=plant(sample.labels, self.kinds[index], np.random.default_rng([self.seed, index]))
        )

    def wrong_pixels(self, index):
        """Where the label is not the right one, bool [H, W]."""
        return self[index].labels != self.inner[index].labels


def plant(labels, kind, random):
    """Label maps [H, W] with an error of a kind; None where there is no object for it."""
    found = _objects(labels)
    if not found:
        return None
    label, mask = found[int(random.integers(len(found)))]
    wrong = labels.copy()
    if kind == "swapped class":
        wrong[mask] = int(random.choice([other for other in np.unique(labels) if other not in (label, 255)]))
    elif kind == "missing object":
        wrong = _without(labels, mask)
    elif kind == "shifted mask":
        rows, columns = np.nonzero(mask)
        reach = [max(4, round(0.4 * (int(np.ptp(line)) + 1))) for line in (rows, columns)]
        down, right = (int(random.choice([-1, 1])) * step for step in reach)
        wrong = _without(labels, mask)
        moved = cv2.warpAffine(mask.astype(np.uint8), np.float32([[1, 0, right], [0, 1, down]]), mask.shape[::-1])
        wrong[moved.astype(bool) & (labels != 255)] = label
    else:
        inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
        waves = cv2.resize(random.normal(size=(labels.shape[0] // 5, labels.shape[1] // 5)).astype(np.float32),
                           labels.shape[::-1], interpolation=cv2.INTER_CUBIC)  # fmt: skip
        ragged = inside > 3.5 * waves
        wrong = _without(labels, mask & ~ragged)
        wrong[ragged & ~mask & (inside > -8) & (labels != 255)] = label
    return wrong if (wrong != labels).sum() >= 40 else None


def _objects(labels, *, smallest=80, largest=0.2):
    """Connected areas of one class that are neither tiny nor most of the scene."""
    found = []
    for label in np.unique(labels[labels != 255]).tolist():
        count, parts, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)
        for part in range(1, count):
            if smallest <= stats[part, cv2.CC_STAT_AREA] <= largest * labels.size:
                found.append((label, parts == part))
    return found


def _without(labels, mask):
    """Labels in which the pixels of a mask have the nearest other label."""
    nearest = ndimage.distance_transform_edt(mask | (labels == 255), return_distances=False, return_indices=True)
    return np.where(mask, labels[tuple(nearest)], labels)
