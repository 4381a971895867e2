"""Carries inference protocols out: from a `logits_fn` and an image to scores or labels, in bounded memory.

A `logits_fn` maps images [N, 3, H, W] (RGB, 0..255) to logits [N, K, h, w], at the images' size or coarser; coarse
logits are resized bilinearly here, a few rows at a time. Nothing here knows a model class or a data set, so the same
functions serve validation, evaluation, a user's photo and an exported model.

What is held at a time is the logits of the windows that the current rows need, at the size the network gives them, and
a slab of rows of scores within the memory budget; never the scores of the whole image, unless the caller asks for them.

Shapes: K classes, H x W image pixels, h x w pixels of a resized view or of coarse logits, r rows, F flips (1 or 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from resnest_seg.protocols import Protocol, with_options
from resnest_seg.resampling import taps
from resnest_seg.views import LogitsFn, Runner, View, preload, resized_rows, views_of

MEMORY = 1 << 30
"""Default budget of a slab of scores, in bytes."""

CPU_SLAB = 1 << 24
"""On a CPU, slabs stay within this many bytes: they fit its caches, and are several times as fast for that."""

EXP_LIMIT, EXP_LIMIT_64 = 80.0, 700.0
"""Exponents up to which a sum of exponentials is safe in float32 and in float64."""


def score_rows(
    run: Runner,
    image: Any,
    protocol: Protocol,
    *,
    memory: int = MEMORY,
    slab_rows: int | None = None,
    views: list[View] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The scores of an image, a slab of rows at a time.

    Args:
        run: The network.
        image: [3, H, W], RGB 0..255, uint8 or float.
        protocol: How it is shown to the network, and how its answers are merged.
        memory: Bytes that the scores of a slab and their intermediates may take.
        slab_rows: Rows of a slab; None takes what the memory allows.
        views: `views_of` the image where they have been preloaded; None makes them.

    Yields:
        The first row of a slab, and its scores [K, r, W]: the protocol's mean logits, mean probabilities, or sum of
        exponentials (of float64, where float32 could not hold them).
    """
    height, width = image.shape[1:]
    views = views_of(run, image, protocol) if views is None else views
    if protocol.merge == "exp":  # which need the largest logit of the whole image first
        preload([view for view in views if not view.loaded])
        _agree_on_exponents(views)
    classes = views[0].band(0).shape[2]
    if slab_rows is None:
        row = 4 * classes * max(width, *(view.size[0] * view.size[1] // height for view in views))
        # a slab of scores, one of a view with its flips, and what computing and resizing that takes
        slab_rows = memory // (row * (2 + 4 * len(views[0].flips)))
        if not views[0].band(0).is_cuda:
            slab_rows = min(slab_rows, CPU_SLAB // row)
        slab_rows = max(slab_rows, 1)
    for first in range(0, height, slab_rows):
        last = min(first + slab_rows, height)
        yield first, _merged(views, first, last, size=(height, width), protocol=protocol)


def _merged(views: list[View], first: int, last: int, *, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """Rows first..last of the image's scores, [K, last - first, W]."""
    total: Tensor | None = None
    corners = {"long_edge": True, "tensor": False}.get(protocol.resize, views[0].run.align_corners)
    for view in views:
        if view.size == size:
            rows = view.rows(first, last)
        else:
            upper, _ = taps(range(first, last), view.size[0], size[0], corners)
            source = range(int(upper[0]), min(int(upper[-1]) + 2, view.size[0]))
            slab = view.rows(source.start, source.stop)
            rows = resized_rows(
                slab, size, range(first, last), align_corners=corners, source=(view.size[0], source.start)
            )
        if protocol.merge == "softmax":
            rows = rows.softmax(dim=1)
        scores = rows.sum(dim=0) if len(rows) > 1 else rows[0]
        total = scores if total is None else total + scores
    assert total is not None
    return total if protocol.merge == "exp" else total / (len(views) * len(views[0].flips))


def scores(run: Runner, image: Any, protocol: Protocol, *, memory: int = MEMORY) -> Tensor:
    """All scores of an image, [K, H, W]; see `score_rows`."""
    return torch.cat([slab for _, slab in score_rows(run, image, protocol, memory=memory)], dim=1)


def labels(run: Runner, image: Any, protocol: Protocol, *, memory: int = MEMORY) -> Tensor:
    """The best class of every pixel, uint8 [H, W], without the scores of the whole image in memory."""
    slabs = score_rows(run, image, protocol, memory=memory)
    return torch.cat([slab.argmax(dim=0).to(torch.uint8) for _, slab in slabs])


def probabilities(scores: Tensor, merge: str) -> Tensor:
    """Scores [K, ...] of a protocol with this `merge` -> class probabilities, float32 [K, ...]."""
    if merge == "logits":
        return scores.softmax(dim=0)
    return (scores / scores.sum(dim=0)).float()


def whole(logits_fn: LogitsFn, image: Tensor, *, stride: int = 8, align_corners: bool = True) -> Tensor:
    """One pass over the whole image at its own size.

    The image is padded right and below with black to multiples of `stride`, as in training, and the logits are cropped
    back, so that features lie at the same pixels whatever the size.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, h, w].
        image: [3, H, W], RGB 0..255.
        stride: Sizes become multiples of this many pixels, the network's output stride.
        align_corners: How logits that are coarser than the image are resized.

    Returns:
        Logits [K, H, W].
    """
    run = Runner(logits_fn, stride=stride, align_corners=align_corners)
    return scores(run, image, Protocol("whole", padding="stride"))


def sliding_window(
    logits_fn: LogitsFn,
    image: Tensor,
    *,
    window: int = 480,
    overlap: int = 160,
    blend: str = "none",
    align_corners: bool = True,
    batch: int | None = None,
) -> Tensor:
    """The mean logits of overlapping square windows, the last of each row and column shifted inward.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, h, w].
        image: [3, H, W], RGB 0..255.
        window: Edge of a window in pixels; a smaller image is its own window.
        overlap: Pixels that neighbours share, below `window`.
        blend: "none", or "hann" or "distance": pixels near the edge of a window count less.
        align_corners: How logits that are coarser than the image are resized.
        batch: Windows a call; None chooses.

    Returns:
        Logits [K, H, W].
    """
    method = with_options(Protocol("slide"), window=window, overlap=overlap, blend=blend)
    return scores(Runner(logits_fn, align_corners=align_corners, batch=batch), image, method)


def multiscale(
    logits_fn: LogitsFn,
    image: Tensor,
    *,
    scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    flip: bool = True,
    window: int | None = None,
    overlap: int | None = None,
    merge: str = "softmax",
    align_corners: bool = True,
    batch: int | None = None,
) -> Tensor:
    """Several sizes of an image, mirrored as well, merged: mmsegmentation's test-time augmentation by default.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, h, w].
        image: [3, H, W], RGB 0..255.
        scales: Sizes of the views, as multiples of the image's.
        flip: Show every view mirrored as well.
        window: Edge of square windows within a view, in pixels; None takes views as a whole.
        overlap: Pixels that neighbouring windows share; None is an eighth of the window.
        merge: What is averaged: "logits", their "softmax", or "exp" of the sum over flips.
        align_corners: How logits that are coarser than the image are resized.
        batch: Images a call; None chooses.

    Returns:
        Scores [K, H, W], see `score_rows`.
    """
    method = with_options(Protocol("multiscale"), scales=scales, flip=flip, window=window, overlap=overlap, merge=merge)
    return scores(Runner(logits_fn, align_corners=align_corners, batch=batch), image, method)


def _agree_on_exponents(views: list[View]) -> None:
    """Choose one shift and precision for all exponentials of an image, so that their sums neither overflow nor vanish.

    Values are those of the plain formula wherever float32 can hold the best class of every pixel; beyond, float64 holds
    logits that are up to 1400 apart, and only what lies outside is scaled, by the same factor everywhere.
    """
    bands = [view.band(start) for view in views for start in view.bands]  # [windows, 1, K, h, w]
    top = max(float(band.max()) for band in bands)
    weakest = min(float(band.amax(dim=2).min()) for band in bands)  # the pixel whose best class is the lowest
    if top <= EXP_LIMIT and weakest >= -EXP_LIMIT:
        return
    shift = top - min(max(top, -EXP_LIMIT_64), EXP_LIMIT_64)
    for view in views:
        view.dtype, view.shift = torch.float64, shift
