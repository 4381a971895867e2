"""Counting pairs of labels and predictions, beside NumPy's histograms."""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING

from resnest_seg.cli.benchmark.measuring import interleave, spread
from resnest_seg.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--classes", type=int, default=150, help="default: 150")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 683), metavar=("H", "W"), help="default: 512 683")


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a way, ours first; equal counts are checked before."""
    import numpy as np
    import torch

    from resnest_seg.evaluation.metrics import ConfusionMatrix

    classes = options.classes
    if not 2 <= classes <= 255 or min(options.size) < 1:
        raise ConfigError("--classes must be between 2 and 255, and --size at least 1 1.")
    random = np.random.default_rng(0)
    labels, found = (random.integers(0, classes, options.size, dtype=np.uint8) for _ in range(2))
    labels[: options.size[0] // 10] = 255
    matrix = ConfusionMatrix(classes)
    tensors = torch.from_numpy(labels)[None], torch.from_numpy(found)[None]

    def by_histogram2d() -> NDArray[np.float64]:
        kept = labels != 255
        edges = ((0, classes), (0, classes))
        counts: NDArray[np.float64] = np.histogram2d(labels[kept], found[kept], bins=classes, range=edges)[0]
        return counts

    def by_bincount() -> NDArray[np.intp]:
        kept = labels != 255
        pairs = classes * labels[kept].astype(np.int64) + found[kept]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def as_the_authors() -> list[NDArray[np.intp]]:
        """`batch_intersection_union` of PyTorch-Encoding: three histograms, and no pairs."""
        ours, theirs = found.astype(np.int64) + 1, np.where(labels == 255, 0, labels.astype(np.int64) + 1)
        ours = ours * (theirs > 0)
        same = ours * (ours == theirs)
        return [np.histogram(values, bins=classes, range=(1, classes))[0] for values in (same, ours, theirs)]

    matrix.update(*tensors)
    expected = matrix.counts.numpy()
    assert np.array_equal(by_histogram2d(), expected), "the histograms do not agree"
    assert np.array_equal(by_bincount(), expected), "the histograms do not agree"
    parts = np.diag(expected), expected.sum(0), expected.sum(1)
    assert all(map(np.array_equal, as_the_authors(), parts)), "the histograms do not agree"
    calls = {
        "ours": lambda: matrix.update(*tensors),
        "numpy.histogram2d": by_histogram2d,
        "three of numpy.histogram, as PyTorch-Encoding": as_the_authors,
        "numpy.bincount of pairs": by_bincount,
    }
    times = interleave(list(calls.values()), options.rounds)
    medians = [statistics.median(taken) for taken in times]
    return [
        {"name": name, "seconds": median, "spread": spread(taken), "times_ours": median / medians[0]}
        for name, median, taken in zip(calls, medians, times, strict=True)
    ]
