"""Active learning: how unsure a model is of an image, and which images differ from each other and from labelled ones.

An image's score is the mean over its pixels, or over the most uncertain share of them, of a measure of the class
probabilities. `choose` takes the highest scores, and of many alike (frames of a video) a few, by k-centre on features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config_types import check_option
from resnest_seg.errors import CheckpointError, ConfigError, unknown_name
from resnest_seg.inference.backends import Backend, Image
from resnest_seg.inference.protocols import Protocol
from resnest_seg.inference.torch_engine import probabilities
from resnest_seg.models.segmenter import Segmenter

BINS = 4096
"""Bins of the histogram by which the mean of the most uncertain pixels is found."""

FEATURE_SIDE = 512
"""Longest side in pixels of the images whose features are compared."""


def entropy(p: Tensor, *, of_labels: bool = False) -> Tensor:
    """Compute the entropy of class probabilities, divided by its maximum: 0 is sure, 1 is a guess.

    Args:
        p: [K, ...]; of classes, whose sum is 1, or of labels that are there or not.
        of_labels: The probabilities are of labels; the result is the mean over them.

    Returns:
        [...], 0..1.
    """
    if of_labels:
        mean: Tensor = (torch.special.entr(p) + torch.special.entr(1 - p)).mean(dim=0)
        return mean / math.log(2)
    total: Tensor = torch.special.entr(p).sum(dim=0)
    return total / math.log(max(len(p), 2))


def margin(p: Tensor, *, of_labels: bool = False) -> Tensor:
    """Compute 1 minus the margin between the two highest class probabilities: 0 is sure, 1 is a tie.

    Args:
        p: See `entropy`.
        of_labels: See `entropy`; the margin of a label is that between its probability and the opposite.

    Returns:
        [...], 0..1.
    """
    if of_labels:
        return 1 - (2 * p - 1).abs().mean(dim=0)
    if len(p) == 1:
        return torch.zeros_like(p[0])
    highest: Tensor = p.topk(2, dim=0).values
    return 1 - (highest[0] - highest[1])


MEASURES = {"margin": margin, "entropy": entropy}
"""Names that `Uncertainty` takes -> the measure of a pixel."""


class Uncertainty:
    """Mean of a measure over the pixels of one image, or over the most uncertain of them, a part of it at a time.

    Args:
        measure: One of `MEASURES`.
        of_labels: See `entropy`.
        top_share: Share of the pixels, the most uncertain ones, over which the mean is taken; 1 takes all. The border
            between them and the rest is found to 1 / `BINS`.

    Raises:
        ConfigError: Unknown measure, or a share that is not above 0 and at most 1.
    """

    def __init__(self, measure: str = "margin", *, of_labels: bool = False, top_share: float = 1.0) -> None:
        if measure not in MEASURES:
            raise unknown_name("measure of uncertainty", measure, MEASURES)
        check_option("top_share", top_share, 0, 1, above=True)
        self.measure, self.of_labels, self.top_share = MEASURES[measure], of_labels, top_share
        self.counts, self.sums = np.zeros(BINS, np.int64), np.zeros(BINS)

    def update(self, p: Tensor, valid: NDArray[np.bool_] | None = None) -> None:
        """Add pixels.

        Args:
            p: Probabilities, float [K, h, w].
            valid: The pixels that count, [h, w]; None for all.
        """
        values = self.measure(p.float(), of_labels=self.of_labels).cpu().numpy().astype(np.float64)
        values = values.ravel() if valid is None else values[valid]
        # NaN, of weights that are damaged, goes to a bin as well, and its sum says so
        places = np.clip(np.nan_to_num(values) * BINS, 0, BINS - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=BINS)
        self.sums += np.bincount(places, weights=values, minlength=BINS)

    def value(self) -> float:
        """Return the mean, 0..1; 0 without a pixel."""
        left = self.top_share * int(self.counts.sum())
        if left == 0:
            return 0.0
        if self.top_share == 1:
            return float(self.sums.sum() / left)
        counts, sums = self.counts[::-1], self.sums[::-1]
        taken = np.clip(left - (np.cumsum(counts) - counts), 0, counts)  # pixels of each bin, from the highest
        return float((sums * taken / np.maximum(counts, 1)).sum() / left)


def image_uncertainty(
    backend: Backend,
    image: Image,
    protocol: Protocol,
    *,
    measure: str = "margin",
    top_share: float = 1.0,
    valid: NDArray[np.bool_] | None = None,
    memory: int | None = None,
) -> float:
    """Score an image of any size, a block of rows at a time.

    Args:
        backend: The model, which must give scores.
        image: See `resnest_seg.inference.backends.Image`.
        protocol: As of `backend.protocol`.
        measure: See `Uncertainty`.
        top_share: See `Uncertainty`.
        valid: The pixels that count, [H, W]; None for all.
        memory: Bytes that scores may take, see `Backend.blocks`.

    Returns:
        0 (sure) to 1.

    Raises:
        CheckpointError: The probabilities are not finite.
    """
    total = Uncertainty(measure, of_labels=backend.decision.task != "multiclass", top_share=top_share)
    for block in backend.blocks(image, protocol, memory=memory):
        p = probabilities(torch.as_tensor(block.scores), protocol.merge)
        total.update(p, None if valid is None else valid[block.rows, block.columns])
    score = total.value()
    if not math.isfinite(score):
        raise CheckpointError("the model's probabilities are not finite: its weights are damaged.")
    return score


@torch.inference_mode()
def pooled_features(segmenter: Segmenter, image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Describe an image by the mean of the encoder's last features, scaled to length 1.

    Args:
        segmenter: In eval mode.
        image: [H, W, C] as the model takes it; a larger one is resized to a longest side of `FEATURE_SIDE`.

    Returns:
        [C4], of length 1.
    """
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    height, width = pixels.shape[2:]
    scale = FEATURE_SIDE / max(height, width)
    if scale < 1:
        size = [max(round(side * scale), 1) for side in (height, width)]
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    with segmenter.pixel_range.trusted():  # the scores have looked at the range already
        c4 = segmenter.features(pixels.to(segmenter.pixel_mean.device)).c4
    mean = c4.float().mean(dim=(2, 3))[0]
    found: NDArray[np.float32] = F.normalize(mean, dim=0).cpu().numpy()
    return found


def k_centre(
    features: NDArray[np.floating], count: int, *, centres: NDArray[np.floating] | None = None
) -> tuple[list[int], list[float]]:
    """Choose rows that cover all rows, greedily: each is the one farthest from those before it (Gonzalez 1985).

    Args:
        features: [N, C].
        count: How many to choose; N if there are fewer.
        centres: Rows that are there already, [M, C]; without any, the first chosen is row 0.

    Returns:
        The rows in the order of their choice, of equally far ones the first; and their distances from the nearest one
        before, infinite for a first one.
    """
    distances = np.full(len(features), np.inf)
    for centre in () if centres is None else centres:
        distances = np.minimum(distances, np.linalg.norm(features - centre, axis=1))
    chosen: list[int] = []
    reached: list[float] = []
    for _ in range(min(count, len(features))):
        row = int(distances.argmax())
        chosen.append(row)
        reached.append(float(distances[row]))
        distances = np.minimum(distances, np.linalg.norm(features - features[row], axis=1))
        distances[chosen] = -1.0  # below the distance 0 of an equal row
    return chosen, reached


class Choice(NamedTuple):
    """A chosen image.

    Attributes:
        place: Its place among the scores.
        score: Its score.
        distance: From the nearest image that was labelled or chosen before, by their features of length 1, so 0..2;
            None without features, or where there was none before.
    """

    place: int
    score: float
    distance: float | None


def choose(
    scores: Sequence[float],
    count: int,
    *,
    features: Callable[[Sequence[int]], tuple[Sequence[int], NDArray[np.floating]]] | None = None,
    centres: NDArray[np.floating] | None = None,
    factor: float = 10.0,
) -> list[Choice]:
    """Choose images by their scores, and with features such that differ, among the `count * factor` highest scores.

    Args:
        scores: Of all images.
        count: How many to choose.
        features: Computes the features of the images at some places: returns the places that have some, in their order,
            and the features [n, C]; it is asked once, for the highest scores. None chooses by scores alone.
        centres: Features of images that are labelled already, [M, C].
        factor: At least 1.

    Returns:
        The images, in the order of their choice: with features see `k_centre`, without from the highest score; of
        equal scores the first.

    Raises:
        ConfigError: A count or factor below 1.
    """
    if count < 1 or not factor >= 1:
        raise ConfigError(f"count and factor must be at least 1, not {count} and {factor}.")
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if features is None:
        return [Choice(place, scores[place], None) for place in order[:count]]
    places, found = features(order[: math.ceil(count * factor)])
    if not places:  # an array of no features has no shape
        return []
    rows, distances = k_centre(found, count, centres=centres)
    return [
        Choice(places[row], scores[places[row]], distance if math.isfinite(distance) else None)
        for row, distance in zip(rows, distances, strict=True)
    ]
