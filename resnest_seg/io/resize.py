"""Sizes of resized images, OpenCV's resizing of any bands, and bilinear resizing a few rows at a time in NumPy, with
torch's rounding."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def resized_bands(image: NDArray[Any], size: tuple[int, int], *, interpolation: int) -> NDArray[Any]:
    """Resize an image by OpenCV, each band as if it were alone but for the last bits of floats.

    OpenCV averages areas of at most four channels, takes 128 at most, and, by the machine, refuses or rounds otherwise
    what lies between (opencv/opencv#29651). So more than four are resized four at a time; the last four may overlap
    those before, because two channels are rounded otherwise as well.

    Args:
        image: [H, W, C], of any type that OpenCV resizes.
        size: (H, W) of the result.
        interpolation: One of OpenCV's, such as `cv2.INTER_LINEAR`.

    Returns:
        [H, W, C], of the image's type.
    """
    count = image.shape[2]
    if count <= 4:
        resized = cv2.resize(image, size[::-1], interpolation=interpolation)
        return resized.astype(image.dtype, copy=False).reshape(*size, count)  # OpenCV drops the axis of one channel
    found = np.empty((*size, count), image.dtype)
    for first in range(0, count, 4):
        start = min(first, count - 4)
        part = np.ascontiguousarray(image[..., start : start + 4])
        found[..., start : start + 4] = cv2.resize(part, size[::-1], interpolation=interpolation)
    return found


def taps(rows: range, source: int, target: int, align_corners: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return, for rows of a resized map, the index of the upper source row and the weight of the lower.

    Args:
        rows: Consecutive rows of the resized map.
        source: Height of the map to be resized.
        target: Height of the resized map.
        align_corners: As in torch's `interpolate`.
    """
    positions = np.arange(rows.start, rows.stop, dtype=np.float32)  # torch's arithmetic, bit for bit
    if align_corners:
        positions = positions * np.float32((source - 1) / max(target - 1, 1))
    else:
        positions = np.maximum((positions + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5), 0)
    above = np.minimum(np.floor(positions), source - 1)
    return above.astype(np.int64), positions - above


def resized_rows(x: Floats, size: tuple[int, int], rows: range, *, align_corners: bool) -> Floats:
    """Compute some rows of a bilinearly resized map.

    Args:
        x: [K, h, w], float32 or float64.
        size: (H, W) of the whole resized map.
        rows: The consecutive rows to compute.
        align_corners: As in torch's `interpolate`.

    Returns:
        [K, len(rows), W], of x's type.
    """
    if x.shape[1] == size[0]:
        x = x[:, rows.start : rows.stop]
    else:
        above, share = taps(rows, x.shape[1], size[0], align_corners)
        below = np.minimum(above + 1, x.shape[1] - 1)
        x = _between(x[:, above], x[:, below], share[:, None].astype(x.dtype))
    if x.shape[2] == size[1]:
        return x
    before, share = taps(range(size[1]), x.shape[2], size[1], align_corners)
    return _between(x[..., before], x[..., np.minimum(before + 1, x.shape[2] - 1)], share.astype(x.dtype))


def _between(first: Floats, second: Floats, share: Floats) -> Floats:
    """Return first + share * (second - first); overwrites `second`."""
    second -= first
    second *= share
    second += first
    return second


def pixel_weights(height: int, width: int, blend: str) -> NDArray[np.float32]:
    """Return the blending weights of a window's pixels, [height, width], above 0.

    Args:
        height: Height of the window.
        width: Width of the window.
        blend: "none" (uniform), "hann" or "distance", see `resnest_seg.inference.protocols.Protocol`.
    """
    if blend == "none":
        return np.ones((height, width), np.float32)
    middles = [(np.arange(length, dtype=np.float32) + np.float32(0.5)) / length for length in (height, width)]
    if blend == "hann":
        down, right = (np.sin(np.pi * middle) ** 2 for middle in middles)
        faded: NDArray[np.float32] = (down[:, None] * right).astype(np.float32)
        return faded
    down, right = (
        (1 - np.abs(2 * middle - 1)) * length for middle, length in zip(middles, (height, width), strict=True)
    )
    nearest: NDArray[np.float32] = np.minimum(down[:, None], right).astype(np.float32)
    return nearest


def long_edge_size(height: int, width: int, long: int) -> tuple[int, int]:
    """Return (H, W) scaled to a long edge of `long` pixels, rounded as in PyTorch-Encoding."""
    if height > width:
        return long, max(int(1.0 * width * long / height + 0.5), 1)
    return max(int(1.0 * height * long / width + 0.5), 1), long


def canvas_size(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (H, W) of equal aspect in a canvas of (long, short) edges, rounded as in mmsegmentation."""
    scale = min(max(canvas) / max(height, width), min(canvas) / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
