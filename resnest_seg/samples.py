"""What a data set is made of: photos with labels; and how files of masks are read."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resnest_seg.errors import DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.photos import JPEG, PNG

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


class Sample(NamedTuple):
    """One photo with its labels.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        labels: Train ids, uint8 [H, W], 0..K-1 or `IGNORE_LABEL`.
        name: What identifies the sample to a person: the photo's path, or the synthetic scene's number.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    name: str


class SegmentationDataset(ABC):
    """Photos with labels, in an order that never changes.

    Attributes:
        label_space: The classes.
        split: "train", "val" or "test".
    """

    label_space: LabelSpace
    split: str

    @abstractmethod
    def __len__(self) -> int: ...

    def identity(self) -> str:
        """What tells, without reading a sample, whether these are the same samples in the same order: a hash."""
        space = json.dumps(self.label_space.to_dict())
        return hashlib.sha256(f"{len(self)} {self.split} {space}".encode()).hexdigest()

    def sample_name(self, index: int) -> str:
        """What a sample is called within its data set, whatever its root: results are named after it.

        The same sample has the same name on every machine, and no two have the same.
        """
        return f"{self.split}_{index:06d}"

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DatasetError: A file cannot be read, sizes differ, or a label is out of range; names the file.
        """


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file by its header, (0, 0) where that says none: reading it then says why."""
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # that it is large is what is asked
            try:
                with Image.open(file) as picture:
                    return picture.height, picture.width
            except Image.DecompressionBombError:  # raised of a header that was read
                return _size_of_bomb(file)
    except (OSError, SyntaxError, ValueError):
        return 0, 0


def _size_of_bomb(file: IO[bytes]) -> tuple[int, int]:
    """What `Image.open` would tell, if it did not refuse to."""
    file.seek(0)
    prefix = file.read(16)
    for name in Image.ID:
        make, accepts = Image.OPEN[name]
        if accepts is not None and accepts(prefix) is True:
            file.seek(0)
            with make(file, "") as picture:
                return picture.height, picture.width
    return 0, 0


def decode_mask(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a mask: ids [H, W] of an 8-bit greyscale or palette image, or colours [H, W, 3] of an RGB image.

    A palette's indices are the ids. Greyscale of 16 bits is read if all its ids are below 256.

    Args:
        data: The file's content.
        name: What errors call it.

    Raises:
        DatasetError: No image, a damaged one, or one that can hold no labels.
    """
    if data[:2] == JPEG or (data[:4] == b"RIFF" and data[12:16] == b"VP8 "):
        raise DatasetError(
            f"{name} is no mask: lossy compression (JPEG, WebP) blurs ids and colours. Save masks as PNG."
        )
    try:
        if data[:8] == PNG and data[24:26] == b"\x08\x00":  # 8-bit greyscale, which OpenCV reads faster
            ids = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if ids is not None and ids.ndim == 2:
                return ids.astype(np.uint8, copy=False)
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except BROKEN as error:
        raise DatasetError(f"cannot read {name}: {_reason(error)}.") from None
    if picture.mode == "1":
        return np.array(picture).astype(np.uint8)
    if picture.mode in ("L", "P"):
        return np.array(picture, np.uint8)
    if picture.mode.startswith("I"):
        ids = np.array(picture)
        if ids.min() < 0 or ids.max() > 255:
            raise DatasetError(f"{name} holds ids up to {ids.max()}: only 0..255 can be labels.")
        return ids.astype(np.uint8)
    if picture.mode in ("RGB", "RGBA"):
        return np.array(picture.convert("RGB"))
    raise DatasetError(f"{name} is no mask: it has mode {picture.mode}, not greyscale, palette or RGB.")


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
