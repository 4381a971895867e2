"""Reading mask files: raw ids or colours per pixel, as stored."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from resnest_seg.errors import DatasetError
from resnest_seg.io.images import JPEG, PNG

BROKEN = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    cv2.error,
    MemoryError,
)
"""What Pillow and OpenCV raise on images that are damaged (SyntaxError: a broken PNG chunk) or too large."""

_LOSSY = "{name} is no mask: lossy compression ({kind}) blurs ids and colours. Save masks as PNG."
_COMPRESSION = 259
_LOSSY_TIFF = {6: "JPEG in TIFF", 7: "JPEG in TIFF", 34892: "JPEG in TIFF", 50001: "WebP in TIFF"}


def decode_mask(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a mask: ids [H, W] of a greyscale or palette image, or colours [H, W, 3] of an RGB image.

    The ids are the values that are stored, also where these have 1, 2 or 4 bits or a TIFF counts from white; of a
    palette, its indices. Greyscale of 16 bits is read if all its ids are below 256.

    Args:
        data: The file's content.
        name: What errors call it.

    Raises:
        DatasetError: No image, a damaged one, or one that can hold no labels.
    """
    if data[:2] == JPEG or _is_lossy_webp(data):
        raise DatasetError(_LOSSY.format(name=name, kind="JPEG or WebP"))
    try:
        if data[:8] == PNG and data[24:26] == b"\x08\x00":  # 8-bit greyscale, which OpenCV reads faster
            ids = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if ids is not None and ids.ndim == 2:
                return ids.astype(np.uint8, copy=False)
        with Image.open(io.BytesIO(data)) as picture:
            if isinstance(picture, TiffImageFile) and picture.tag_v2.get(_COMPRESSION) in _LOSSY_TIFF:
                raise DatasetError(_LOSSY.format(name=name, kind=_LOSSY_TIFF[picture.tag_v2[_COMPRESSION]]))
            picture.load()
    except DatasetError:
        raise
    except BROKEN as error:
        raise DatasetError(f"cannot read {name}: {_reason(error)}.") from None
    if picture.mode in ("1", "L", "P"):
        return _stored(picture, data, name)
    if picture.mode.startswith("I"):
        ids = np.array(picture)
        if ids.min() < 0 or ids.max() > 255:
            raise DatasetError(f"{name} holds ids up to {ids.max()} (from {ids.min()}): only 0..255 can be labels.")
        return ids.astype(np.uint8)
    if data[:8] == PNG and data[24] == 16:  # of which Pillow keeps the upper half
        raise DatasetError(f"{name} is no mask: its colours have 16 bits a channel. Save masks with 8.")
    if picture.mode in ("RGB", "RGBA"):
        return np.array(picture.convert("RGB"))
    raise DatasetError(f"{name} is no mask: it has mode {picture.mode}, not greyscale, palette or RGB.")


def _stored(picture: Image.Image, data: bytes, name: str) -> NDArray[np.uint8]:
    """The values of a picture of one band [H, W] as the file has them: Pillow scales them up to white = 255."""
    values = np.array(picture).astype(np.uint8)
    depth, white_first = data[24] if data[:8] == PNG else 8, False
    if isinstance(picture, TiffImageFile):
        depth, white_first = picture.tag_v2.get(258, (1,))[0], picture.tag_v2.get(262) == 0
        if picture.tag_v2.get(339, (1,))[0] == 2 and (values > 127).any():
            raise DatasetError(f"{name} holds ids below 0 (it has a sign): only 0..255 can be labels.")
    if picture.mode == "1":
        return 1 - values if white_first else values
    if picture.mode == "P":
        return values
    values = 255 - values if white_first else values
    return values // np.uint8(255 // (2**depth - 1)) if depth in (2, 4) else values


def _is_lossy_webp(data: bytes) -> bool:
    """Whether a WebP file holds a lossy picture, in its plain or its extended form, or in a frame of an animation."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return False
    place = 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind == b"VP8 ":
            return True
        place += 8 + (16 if kind == b"ANMF" else size + size % 2)  # a frame holds chunks of its own
    return False


def mask_palette(data: bytes) -> NDArray[np.uint8] | None:
    """The colours of a palette mask by index, uint8 [256, 3]; None for other masks and for what cannot be read."""
    if data[:8] == PNG and data[25:26] != b"\x03":
        return None
    try:
        with Image.open(io.BytesIO(data)) as picture:
            colors = picture.getpalette("RGB") if picture.mode == "P" else None
    except BROKEN:
        return None
    if colors is None:
        return None
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors) // 3] = np.array(colors, np.uint8).reshape(-1, 3)
    return palette


def _reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, Image.DecompressionBombError | cv2.error | MemoryError):
        return "it has too many pixels"
    return "no image, or a damaged one"
