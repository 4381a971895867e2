"""Visualization of labels: colours, overlays with a legend, error maps, contact sheets; RGB, uint8 [H, W, 3]."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError
from resnest_seg.files import atomic_write
from resnest_seg.io.images import PalettePng
from resnest_seg.labels import LabelSpace, bits_to_labels, ignored_pixels

Image = NDArray[np.uint8]
"""RGB, uint8 [H, W, 3]."""

Labels = NDArray[Any]
"""Train ids, uint8 [H, W]; of a multi-label task bits, uint16 [H, W]."""

_FONT, _FONT_SCALE, _ROW = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 18
_PAPER, _INK = (250, 250, 248), (30, 30, 34)


def picture_of(
    pixels: NDArray[Any], *, channels: Sequence[int] | None = None, valid: NDArray[np.bool_] | None = None
) -> Image:
    """Make a picture of an image [H, W, C] of any type: three bands, stretched from 2nd to 98th percentile.

    8-bit RGB is its own picture.

    Args:
        pixels: The image.
        channels: Those shown as red, green and blue, from 0, or one that is shown as grey; None takes the first three,
            or the first.
        valid: False where a band has no data, [H, W, C], which is shown white; None if all have.
    """
    if channels is None:
        if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
            return pixels
        channels = (0, 1, 2) if pixels.shape[2] >= 3 else (0,)
    picture = np.empty((*pixels.shape[:2], 3), np.uint8)
    for place in range(3):
        channel = channels[place % len(channels)]
        band = pixels[..., channel].astype(np.float32)
        known = np.isfinite(band) if valid is None else np.isfinite(band) & valid[..., channel]
        sample = band[known]
        sample = sample[:: max(len(sample) >> 20, 1)]
        low, high = np.percentile(sample, (2, 98)) if len(sample) else (0.0, 1.0)
        if high <= low:
            low, high = low - 1, high + 1
        shade = np.nan_to_num((band - low) * (255 / (high - low)), posinf=255, neginf=0).clip(0, 255).round()
        picture[..., place] = np.where(known, shade, 255)
    return picture


def colourise(labels: Labels, space: LabelSpace) -> Image:
    """Paint labels in their class colours, RGB uint8 [H, W, 3]; ignored pixels are black.

    Where several labels of a multi-label task are present, their colours are averaged; no label is black, too.
    """
    if space.task != "multilabel":
        return space.palette[labels]
    present, _ = bits_to_labels(labels, len(space))
    total = np.tensordot(present, np.array(space.colors, np.float32), axes=(0, 0))
    painted: Image = (total / np.maximum(present.sum(axis=0), 1)[..., None]).round().astype(np.uint8)
    return painted


def overlay(image: Image, labels: Labels, space: LabelSpace, *, alpha: float = 0.5) -> Image:
    """Blend `alpha` (0..1) of the class colours into the image; ignored pixels are unchanged.

    So are the background of a binary task and pixels without a label of a multi-label task.
    """
    blended = image * (1 - alpha) + colourise(labels, space) * alpha
    plain = ignored_pixels(labels) if space.task == "multiclass" else ignored_pixels(labels) | (labels == 0)
    return np.where(plain[..., None], image, blended.round().astype(np.uint8))


def png_bytes(picture: Image) -> bytes:
    """Encode an RGB picture [H, W, 3] as PNG."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, picture.shape
    return data.tobytes()


def write_png(path: str | Path, picture: Image) -> None:
    """Write an RGB picture [H, W, 3] as PNG, atomically.

    Raises:
        ConfigError: Another suffix.
    """
    if Path(path).suffix.lower() != ".png":
        raise ConfigError(f"pictures are saved as .png, not as {path}.")
    with atomic_write(path) as temporary:
        temporary.write_bytes(png_bytes(picture))


def labels_png(labels: Labels, space: LabelSpace, *, ids: str) -> bytes:
    """Encode labels as a palette PNG; see `write_labels` for the options and errors."""
    if ids not in ("raw", "train"):
        raise ConfigError(f"ids must be 'raw' or 'train', not {ids!r}.")
    if space.task == "multilabel":
        done, data = cv2.imencode(".png", labels.astype(np.uint16, copy=False))
        assert done, labels.shape
        return data.tobytes()
    palette = space.palette
    if ids == "raw":
        labels, palette = space.decode(labels), np.zeros_like(palette)
        palette[list(space.raw_ids)] = space.colors
    file = io.BytesIO()
    height, width = labels.shape
    with PalettePng(file, height, width, palette) as picture:
        picture.write(labels)
    return file.getvalue()


def write_labels(path: str | Path, labels: Labels, space: LabelSpace, *, ids: str) -> None:
    """Write labels as an 8-bit palette PNG: pixel values are ids, and viewers show the class colours.

    Labels of a multi-label task become a 16-bit greyscale PNG: bit k says that label k is present.

    Args:
        path: A .png file; it is written atomically.
        labels: Train ids [H, W].
        space: Their label space.
        ids: "raw" for the data set's own ids, as in its mask files, or "train" for 0..K-1 and `IGNORE_LABEL`.

    Raises:
        ConfigError: Another suffix, or an unknown kind of ids.
    """
    if Path(path).suffix.lower() != ".png":
        raise ConfigError(f"labels are saved as .png, which preserves every id; not as {path}.")
    data = labels_png(labels, space, ids=ids)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def error_map(labels: Labels, predictions: Labels) -> Image:
    """Paint correct pixels white, wrong ones red and ignored ones grey: RGB, uint8 [H, W, 3]."""
    picture = np.full((*labels.shape, 3), (240, 240, 240), np.uint8)
    picture[labels != predictions] = (214, 40, 40)
    picture[ignored_pixels(labels)] = (140, 140, 140)
    return picture


def with_legend(picture: Image, labels: Labels, space: LabelSpace) -> Image:
    """Add a legend below the picture: the classes that occur in `labels`, largest first, with their shares."""
    shares = class_shares(labels, space)
    present, texts = list(shares), list(shares.values())
    cell = max([28 + cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0] for text in texts], default=1)
    width = max(picture.shape[1], cell)
    columns = max(width // cell, 1)
    rows = -(-len(texts) // columns)
    legend = np.full((rows * _ROW + 4, width, 3), _PAPER, np.uint8)
    for index, (label, text) in enumerate(zip(present, texts, strict=True)):
        x, y = index % columns * cell + 4, index // columns * _ROW + 4
        cv2.rectangle(legend, (x, y), (x + 14, y + 12), space.colors[label], -1)
        cv2.putText(legend, text, (x + 19, y + 10), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    beside = np.full((picture.shape[0], width - picture.shape[1], 3), _PAPER, np.uint8)
    return np.vstack([np.hstack([picture, beside]), legend])


def pixel_counts(labels: Labels, space: LabelSpace) -> NDArray[np.int64]:
    """Count the pixels of every class [K] in labels; of a multi-label task those where the label is present."""
    if space.task == "multilabel":
        present: NDArray[np.int64] = bits_to_labels(labels, len(space)).present.sum(axis=(1, 2), dtype=np.int64)
        return present
    return np.bincount(labels.ravel(), minlength=256)[: len(space)].astype(np.int64, copy=False)


def class_shares(labels: Labels, space: LabelSpace) -> dict[int, str]:
    """Map the classes that occur in labels, largest first, to a text such as "road 41.3%"."""
    counts = pixel_counts(labels, space)
    present = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    return {label: f"{space.names[label]} {100 * counts[label] / labels.size:.1f}%" for label in present}


def contact_sheet(
    samples: Sequence[tuple[Image, Labels, Labels]], space: LabelSpace, *, width: int = 320, title: str = ""
) -> Image:
    """Draw a page with one row per sample (photo, truth, prediction, error map) and a legend of the classes.

    Args:
        samples: (image [H, W, 3], labels [H, W], predictions [H, W]), at least one.
        space: The label space of labels and predictions.
        width: Width in pixels of one picture on the page.
        title: A line of ASCII text above the page.
    """
    rows = []
    for image, labels, predictions in samples:
        size = (width, max(round(image.shape[0] * width / image.shape[1]), 1))
        photo = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        maps = (colourise(labels, space), colourise(predictions, space), error_map(labels, predictions))
        row = [photo, *(cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST_EXACT) for picture in maps)]
        framed = [cv2.copyMakeBorder(picture, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=_PAPER) for picture in row]
        rows.append(np.hstack(framed).astype(np.uint8, copy=False))
    body = np.vstack(rows)
    head = np.full((2 * _ROW + 4, body.shape[1], 3), _PAPER, np.uint8)
    cv2.putText(head, title, (6, 14), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    for column, name in enumerate(("photo", "truth", "prediction", "errors (red)")):
        origin = (column * (width + 4) + 6, _ROW + 14)
        cv2.putText(head, name, origin, _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    seen = np.concatenate([part.ravel() for _, labels, predictions in samples for part in (labels, predictions)])
    return with_legend(np.vstack([head, body]), seen[None], space)
