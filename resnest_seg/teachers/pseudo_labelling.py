"""Labels that a model gives to unlabelled photos, and CutMix: pure rules on pixels.

A pixel has a pseudo-label if its most probable class is at least as probable as a threshold (FixMatch, Sohn et al.,
https://arxiv.org/abs/2001.07685). CutMix for segmentation is French et al.'s, https://arxiv.org/abs/1906.01916, with
the sizes of boxes of UniMatch, Yang et al., https://arxiv.org/abs/2208.09910.

Shapes: N batch, K classes, h x w feature pixels, H x W image pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor

from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE
from resnest_seg.models.heads import resize_logits

BOX_AREA, BOX_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
"""Range of a box's area as a share of the crop, and of its height to its width, both times those of the crop."""

HELD = 1 << 24
"""Scores at full size that are held at a time: 64 MiB."""


class Box(NamedTuple):
    """A rectangle of pixels; without a pixel if its height is 0."""

    top: int
    left: int
    height: int
    width: int


def draw_box(size: tuple[int, int], random: Generator) -> Box:
    """Draw a box of CutMix within a crop of H x W pixels, as UniMatch does: uniform area, aspect and place."""
    area = random.uniform(*BOX_AREA)
    while True:
        aspect = random.uniform(*BOX_ASPECT)
        height, width = int(size[0] * math.sqrt(area * aspect)), int(size[1] * math.sqrt(area / aspect))
        top, left = int(random.integers(size[0])), int(random.integers(size[1]))
        if top + height <= size[0] and left + width <= size[1]:
            return Box(top, left, height, width)


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which pixels lie in their image's box: int [N, 4], as `Box` -> bool [N, H, W]."""
    top, left, height, width = (each[:, None, None] for each in boxes.unbind(1))
    rows = torch.arange(size[0], device=boxes.device)[None, :, None]
    columns = torch.arange(size[1], device=boxes.device)[None, None, :]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


@torch.no_grad()
def predict(logits: Tensor, size: tuple[int, int], *, align_corners: bool, held: int = HELD) -> tuple[Tensor, Tensor]:
    """Predict the most probable class of every pixel, and its probability, from logits at feature size.

    They equal those of a softmax over logits at full size, of which a few classes are held at a time.

    Args:
        logits: [N, K, h, w], K of 2 or more.
        size: H and W.
        align_corners: As in `F.interpolate`.
        held: Limit of scores at full size, at least one class of them.

    Returns:
        Classes, uint8 [N, H, W], of equal ones the first; probabilities, float32 [N, H, W].
    """
    share = max(held // (len(logits) * size[0] * size[1]), 1)
    best = logits.new_full((len(logits), *size), -math.inf, dtype=torch.float32)
    odds, labels = torch.zeros_like(best), torch.zeros_like(best, dtype=torch.uint8)
    for first in range(0, logits.shape[1], share):
        part = resize_logits(logits[:, first : first + share].float(), size, align_corners=align_corners)
        top, place = part.max(dim=1)
        higher = torch.maximum(best, top)
        odds = odds * torch.exp(best - higher) + torch.exp(part - higher[:, None]).sum(dim=1)
        labels = torch.where(top > best, (place + first).to(torch.uint8), labels)
        best = higher
    return labels, 1 / odds


@torch.no_grad()
def predict_bits(logits: Tensor, size: tuple[int, int], *, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Predict which labels every pixel has, as bits, and the probability of its least certain label.

    Args:
        logits: [N, K, h, w], one a label; K = 1 of a binary task.
        size: H and W.
        align_corners: As in `F.interpolate`.

    Returns:
        Bits, int32 [N, H, W]; the smallest over the labels of the probability of what was predicted, [N, H, W].
    """
    bits = torch.zeros((len(logits), *size), dtype=torch.int32, device=logits.device)
    certain = torch.ones((len(logits), *size), device=logits.device)
    for label in range(logits.shape[1]):
        score = resize_logits(logits[:, label : label + 1].float(), size, align_corners=align_corners)[:, 0]
        bits |= (score >= 0).int() << label
        certain = torch.minimum(certain, torch.sigmoid(score.abs()))
    return bits, certain


def pseudo_labels(
    logits: Tensor, valid: Tensor, *, threshold: float, align_corners: bool, task: str = "multiclass"
) -> Tensor:
    """Label the pixels of which the model is certain; all others are ignored.

    Args:
        logits: [N, K, h, w].
        valid: bool [N, H, W]: false in padding, which gets no label.
        threshold: The least probability of the predicted class; of a multi-label task that of every label's prediction.
        align_corners: As in `F.interpolate`.
        task: One of `resnest_seg.labels.TASKS`.

    Returns:
        uint8 [N, H, W], 0..K-1 or `IGNORE_LABEL`; of a multi-label task bits or `MULTILABEL_IGNORE`, int32.
    """
    size = (valid.shape[1], valid.shape[2])
    if task == "multiclass":
        labels, certain = predict(logits, size, align_corners=align_corners)
    else:
        labels, certain = predict_bits(logits, size, align_corners=align_corners)
    ignore = MULTILABEL_IGNORE if task == "multilabel" else IGNORE_LABEL
    found = labels.masked_fill(~valid | (certain < threshold), ignore)
    return found if task == "multilabel" else found.to(torch.uint8)
