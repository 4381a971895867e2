"""Reading mask files: raw ids or colours per pixel, as stored; sizes and orientation tags in image headers."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from resnest_seg.errors import DatasetError
from resnest_seg.io.images import BROKEN_EXIF, JPEG, PNG, refuse_too_large

BROKEN = (*BROKEN_EXIF, UnidentifiedImageError, Image.DecompressionBombError, cv2.error, MemoryError)
"""Exceptions of Pillow and OpenCV on images that are corrupt (SyntaxError: a broken PNG chunk) or too large."""


_ORIENTATION = 274


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (height, width) of an image file from its header; (0, 0) if it has none (decoding then raises the error)."""
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # large images are expected here
            try:
                with Image.open(file) as picture:
                    return picture.height, picture.width
            except Image.DecompressionBombError:  # the header is valid
                return _size_of_bomb(file)
    except (OSError, SyntaxError, ValueError):
        return 0, 0


def _size_of_bomb(file: IO[bytes]) -> tuple[int, int]:
    """Return the size that `Image.open` reads before it rejects the image as too large."""
    file.seek(0)
    prefix = file.read(16)
    for name in Image.ID:
        make, accepts = Image.OPEN[name]
        if accepts is not None and accepts(prefix) is True:
            file.seek(0)
            with make(file, "") as picture:
                return picture.height, picture.width
    return 0, 0


def orientation(data: bytes) -> int:
    """Read the EXIF orientation of a photo, 1..8; 1 if there is none."""
    if data[:8] == PNG and b"eXIf" not in data:  # Pillow would decode all pixels to look behind them
        return 1
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
            turned = picture.getexif().get(_ORIENTATION, 1)
    except BROKEN:
        return 1
    return turned if turned in range(2, 9) else 1


_LOSSY = "{name} is not a mask: lossy compression ({kind}) blurs ids and colours. Save masks as PNG."
_COMPRESSION = 259
_LOSSY_TIFF = {6: "JPEG in TIFF", 7: "JPEG in TIFF", 34892: "JPEG in TIFF", 50001: "WebP in TIFF"}


def decode_mask(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a mask: ids [H, W] of a greyscale or palette image, or colours [H, W, 3] of an RGB image.

    Ids are the stored values, unscaled: also with 1, 2 or 4 bits and in a TIFF that counts from white; in a palette
    image, the indices. 16-bit greyscale is read if all ids are below 256.

    Args:
        data: The file's content.
        name: Its name in error messages.

    Returns:
        uint8 [H, W] or [H, W, 3].

    Raises:
        DatasetError: No image, a damaged one, one of too many pixels, or one that can hold no labels.
    """
    ids = decode_ids(data, name)
    if ids.ndim == 2 and ids.dtype != np.uint8:
        if ids.min() < 0 or ids.max() > 255:
            raise DatasetError(
                f"{name} holds ids up to {ids.max()} (from {ids.min()}): only 0..255 can be labels. Masks of bits, "
                "several labels a pixel, need --model.task multilabel."
            )
        return ids.astype(np.uint8)
    return ids


def decode_bits(data: bytes, name: str) -> NDArray[np.uint16]:
    """Decode a multi-label mask, a greyscale image of up to 16 bits: maps of bits, uint16 [H, W].

    Raises:
        DatasetError: See `decode_mask`; or it is a mask of colours, or holds values outside 0..65535.
    """
    bits = decode_ids(data, name)
    if bits.ndim == 3:
        raise DatasetError(
            f"{name} is a mask of colours (RGB), and a multi-label mask is a greyscale image of bits: 8 or 16 bits a "
            "pixel, of which bit k says that label k is present."
        )
    if bits.min() < 0 or bits.max() > 65535:
        raise DatasetError(f"{name} holds values from {bits.min()} to {bits.max()}: a map of bits has 0..65535.")
    return bits.astype(np.uint16)


def decode_ids(data: bytes, name: str) -> NDArray[Any]:
    """Decode what `decode_mask` decodes, greyscale of 16 bits included: integers [H, W], or colours uint8 [H, W, 3]."""
    if data[:2] == JPEG or _is_lossy_webp(data):
        raise DatasetError(_LOSSY.format(name=name, kind="JPEG or WebP"))
    refuse_too_large(data, name)
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
        return np.array(picture)
    if picture.mode in ("RGB", "RGBA"):
        deep = data[:8] == PNG and data[24] == 16
        if isinstance(picture, TiffImageFile):
            deep = max(picture.tag_v2.get(258, (8,))) > 8
        if deep:  # Pillow keeps the upper 8 bits only
            raise DatasetError(f"{name} is not a mask: its colours have 16 bits a channel. Save masks with 8.")
        return np.array(picture.convert("RGB"))
    if picture.mode == "F":
        raise DatasetError(
            f"{name} is not a mask: it holds floating-point values, and ids are whole: gdal_translate -ot Byte IN OUT"
        )
    raise DatasetError(f"{name} is not a mask: it has mode {picture.mode}, not greyscale, palette or RGB.")


def _stored(picture: Image.Image, data: bytes, name: str) -> NDArray[np.uint8]:
    """Return the stored values [H, W] of a picture with one band: Pillow scales them to white = 255."""
    values = np.array(picture).astype(np.uint8)
    depth, white_first = data[24] if data[:8] == PNG else 8, False
    if isinstance(picture, TiffImageFile):
        depth, white_first = picture.tag_v2.get(258, (1,))[0], picture.tag_v2.get(262) == 0
        if picture.tag_v2.get(339, (1,))[0] == 2 and (values > 127).any():
            raise DatasetError(f"{name} holds ids below 0 (it is signed): only 0..255 can be labels.")
    if picture.mode == "1":
        return 1 - values if white_first else values
    if picture.mode == "P":
        return values
    values = 255 - values if white_first else values
    return values // np.uint8(255 // (2**depth - 1)) if depth in (2, 4) else values


def _is_lossy_webp(data: bytes) -> bool:
    """True if a WebP file holds a lossy picture, in its plain or its extended form, or in a frame of an animation."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return False
    offset = 12
    while offset + 8 <= len(data):
        kind, size = data[offset : offset + 4], int.from_bytes(data[offset + 4 : offset + 8], "little")
        if kind == b"VP8 ":
            return True
        offset += 8 + (16 if kind == b"ANMF" else size + size % 2)  # a frame contains chunks
    return False


def mask_palette(data: bytes) -> NDArray[np.uint8] | None:
    """Read the colours of a palette mask by index, uint8 [256, 3]; None for other masks and unreadable files."""
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
    """Say in a few words why an image cannot be read."""
    if isinstance(error, Image.DecompressionBombError | cv2.error | MemoryError):
        return "it has too many pixels"
    return "not an image, or a corrupt one"
