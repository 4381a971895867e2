"""Statistics of a whole split: shares of classes, loss weights, rare-class sampling; mean and deviation of bands."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config import CLASS_WEIGHTS, RunConfig
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.inspection import BandFacts, scan, scan_bands
from resnest_seg.errors import DatasetError, unknown_name
from resnest_seg.io.bands import BandReader

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def class_shares(counts: Counts) -> Floats:
    """Return each class's share of all labelled pixels, 0..1: counts [..., K], summed over leading axes -> [K]."""
    total = counts.reshape(-1, counts.shape[-1]).sum(axis=0)
    shares: Floats = total / max(total.sum(), 1)
    return shares


def median_frequency_weights(counts: Counts) -> Floats:
    """Return median-frequency class weights, [K]: the median of the frequencies divided by each class's frequency.

    A class's frequency is its pixels divided by all labelled pixels of the photos that show it; an absent class has
    weight 0. Eigen and Fergus, https://arxiv.org/abs/1411.4734.

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
    """Return (1 - beta) / (1 - beta ** pixels), [K], scaled to a mean of 1 over present classes; 0 for absent ones.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", https://arxiv.org/abs/1901.05555.

    Args:
        counts: Labelled pixels by photo and class, [S, K].
        beta: In [0, 1); the nearer to 1, the larger the weights of rare classes.
    """
    pixels = counts.sum(axis=0).astype(np.float64)
    seen = pixels > 0
    weights = np.divide(1 - beta, -np.expm1(pixels * np.log(beta)), out=np.zeros_like(pixels), where=seen)
    scaled: Floats = weights / weights[seen].mean() if seen.any() else weights
    return scaled


def rare_class_probabilities(counts: Counts, *, temperature: float) -> Floats:
    """Return the probability of each photo, [S]: a class by exp((1 - share) / temperature), then a photo with it.

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


@dataclasses.dataclass(frozen=True)
class Balance:
    """Sampling probabilities and loss weights of a run.

    Attributes:
        probabilities: Probability of drawing each sample by `data.rare_class`, [S]; None for once per epoch.
        class_weights: Class weights in the loss by `train.class_weights`, [K] float32; None for uniform weights.
        pos_weight: Weights of the pixels with a label, [K] float32, by `train.class_weights balanced`; None for those
            of `train.pos_weight`.
    """

    probabilities: NDArray[np.float64] | None = None
    class_weights: Tensor | None = None
    pos_weight: Tensor | None = None


def balance(dataset: SegmentationDataset, config: RunConfig) -> Balance:
    """Compute the balance of a training split; reads all masks if a config key needs them.

    Raises:
        DatasetError: A mask cannot be read.
    """
    rare = config.data.rare_class
    if rare is None and config.train.class_weights == "none":
        return Balance()

    facts = list(scan(dataset, range(len(dataset)), workers=config.data.workers))
    problem = next((fact.problem for fact in facts if fact.problem is not None), None)
    if problem is not None:
        raise DatasetError(problem)
    counts = np.stack([fact.labels[:-1] for fact in facts])
    probabilities = None if rare is None else rare_class_probabilities(counts, temperature=rare)
    if config.train.class_weights == "balanced":
        positives = counts.sum(axis=0)[len(dataset.label_space) - len(dataset.label_space.score_names) :]
        weights = balanced_pos_weight(positives, sum(fact.labelled for fact in facts))
        return Balance(probabilities, pos_weight=torch.from_numpy(weights).float())
    return Balance(probabilities, class_weights(config.train.class_weights, counts))


def balanced_pos_weight(positives: NDArray[np.int64], pixels: int) -> Floats:
    """Return the weights of positive pixels with which those with and without a label weigh the same, [K].

    Args:
        positives: Pixels that have a label, [K]; of an absent label, the weight is 1.
        pixels: Labelled pixels.
    """
    seen = positives > 0
    weights: Floats = np.where(seen, (pixels - positives) / np.maximum(positives, 1), 1.0)
    return weights


def class_weights(name: str, counts: NDArray[np.int64]) -> Tensor | None:
    """Compute the weights of `train.class_weights`, [K] float32; None for "none".

    Args:
        name: none, median_frequency or effective_number.
        counts: Labelled pixels by photo and class, [S, K].

    Raises:
        ConfigError: Unknown name.
    """
    if name not in CLASS_WEIGHTS:
        raise unknown_name("train.class_weights", name, CLASS_WEIGHTS)
    if name == "none":
        return None
    weights = median_frequency_weights(counts) if name == "median_frequency" else effective_number_weights(counts)
    return torch.from_numpy(weights).float()


@dataclasses.dataclass(frozen=True)
class PixelStatistics:
    """Mean and deviation of the bands of a split, in the units of its files.

    Attributes:
        mean: Of each band, [C].
        std: Standard deviation, [C]; 1 of a constant band.
        kind: The type of the values, such as "uint16".
        missing: Share of values without data, 0..1.
        warnings: What a person should know, one sentence each.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str
    missing: float
    warnings: tuple[str, ...] = ()


def merged_statistics(facts: Iterable[BandFacts], dataset: SegmentationDataset) -> PixelStatistics:
    """Merge the facts of rasters of a data set, in their order.

    Raises:
        DatasetError: Two files differ in bands or type (both are named); a band has no data; there is no file.
    """
    first: BandFacts | None = None
    values, undeclared = 0, list[str]()
    for fact in facts:
        if first is None:
            first, total = fact, fact.sums
        else:
            _check_alike(first, fact)
            total = total.merged(fact.sums)
        values += fact.values
        undeclared += [fact.name] * fact.undeclared
    if first is None:
        raise DatasetError(f"the {dataset.split} split has no sample, so its bands have no statistics.")
    reader, split = dataset.bands or BandReader(), dataset.split
    empty = np.flatnonzero(total.count == 0)
    if len(empty):
        raise DatasetError(
            f"band {reader.label(int(empty[0]))} has no data in any file of {split}: leave it out of data.bands."
        )
    warnings = [
        f"band {reader.label(int(band))} has one value in all files of {split}, and tells a model nothing: its "
        "deviation is taken as 1. Leave it out of data.bands."
        for band in np.flatnonzero(total.squares <= 0)
    ]
    if undeclared:
        warnings.append(
            f"{len(undeclared)} files of {split} hold NaN, which is taken for no data, the first is {undeclared[0]}. "
            "Files whose nodata value is nan say so: gdal_edit.py -a_nodata nan FILES"
        )
    return PixelStatistics(
        tuple(total.mean.tolist()),
        tuple(np.where(total.squares > 0, total.deviation, 1.0).tolist()),
        first.kind,
        1 - float(total.count.sum()) / max(values, 1),
        tuple(warnings),
    )


def pixel_statistics(dataset: SegmentationDataset, *, workers: int = 0) -> PixelStatistics:
    """Compute mean and deviation of each band in one pass, in float64, without the values that are no data.

    Args:
        dataset: The split.
        workers: Loader processes; the result does not depend on their number.

    Raises:
        DatasetError: See `merged_statistics`; or a sample cannot be read.
        ResNeStSegError: A loader process could not be started, or died.
    """
    with contextlib.closing(scan_bands(dataset, range(len(dataset)), workers=workers)) as facts:
        return merged_statistics(facts, dataset)


def _check_alike(first: BandFacts, other: BandFacts) -> None:
    bands = len(first.sums.mean), len(other.sums.mean)
    if bands[0] != bands[1]:
        raise DatasetError(
            f"the files differ in bands: {first.name} has {bands[0]}, and {other.name} has {bands[1]}. Choose bands "
            "that all have, such as data.bands: [1, 2, 3], or remove the odd files."
        )
    if first.kind != other.kind:
        raise DatasetError(
            f"the files differ in the type of their values, so in their units: {first.name} holds {first.kind}, and "
            f"{other.name} {other.kind}. Convert all to one: gdal_translate -ot TYPE IN OUT"
        )
