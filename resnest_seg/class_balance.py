"""What the shares of classes say: weights for a loss, and which photos to draw more often."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def class_shares(counts: Counts) -> Floats:
    """Share of each class in all labelled pixels: [..., K] counts, summed over the leading axes -> [K]."""
    total = counts.reshape(-1, counts.shape[-1]).sum(axis=0)
    shares: Floats = total / max(total.sum(), 1)
    return shares


def median_frequency_weights(counts: Counts) -> Floats:
    """Median of the frequencies over each class's frequency; 0 for a class without pixels.

    A class's frequency is its pixels over all labelled pixels of the photos that show it. Eigen and Fergus,
    https://arxiv.org/abs/1411.4734.

    Args:
        counts: Labelled pixels by photo and class, [S, K].
    """
    pixels = counts.sum(axis=0)
    around = ((counts > 0) * counts.sum(axis=1, keepdims=True)).sum(axis=0)
    frequency = pixels / np.maximum(around, 1)
    seen = frequency > 0
    median = np.median(frequency[seen]) if seen.any() else 0.0
    weights: Floats = np.divide(median, frequency, out=np.zeros_like(frequency), where=seen)
    return weights


def effective_number_weights(counts: Counts, *, beta: float = 0.999999) -> Floats:
    """(1 - beta) / (1 - beta ** pixels) for each class, scaled to a mean of 1 over classes with pixels, 0 for others.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", https://arxiv.org/abs/1901.05555.

    Args:
        counts: Labelled pixels by photo and class, [S, K].
        beta: Below 1; the nearer, the more a rare class weighs.
    """
    pixels = counts.sum(axis=0).astype(np.float64)
    seen = pixels > 0
    weights = np.divide(1 - beta, -np.expm1(pixels * np.log(beta)), out=np.zeros_like(pixels), where=seen)
    scaled: Floats = weights / weights[seen].mean() if seen.any() else weights
    return scaled


def rare_class_probabilities(counts: Counts, *, temperature: float) -> Floats:
    """Probability of drawing each photo: first a class by exp((1 - share) / temperature), then a photo that shows it.

    Hoyer et al., "DAFormer", https://arxiv.org/abs/2111.14887, section 3.3. Photos without labels are never drawn.

    Args:
        counts: Labelled pixels by photo and class, [S, K].
        temperature: 0.01 draws rare classes strongly, 1 hardly.
    """
    shows = counts > 0
    photos = shows.sum(axis=0)
    exponent = (1 - class_shares(counts)) / temperature
    preference = np.where(photos > 0, np.exp(exponent - exponent.max()), 0.0)
    if not preference.any():
        return np.full(len(counts), 1 / max(len(counts), 1))
    by_class = preference / preference.sum()
    probabilities: Floats = (shows * (by_class / np.maximum(photos, 1))).sum(axis=1)
    probabilities /= probabilities.sum()
    return probabilities
