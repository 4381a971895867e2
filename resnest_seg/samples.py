"""What a data set is made of: photos with labels, and how their files are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resnest_seg.errors import DatasetError
from resnest_seg.labels import LabelSpace


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

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DatasetError: A file cannot be read, sizes differ, or a label is out of range; names the file.
        """


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a photo as RGB, uint8 [H, W, 3], turned upright as its EXIF data says.

    Raises:
        DatasetError: The file is missing, or is no image that can be decoded.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}.") from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise DatasetError(f"cannot read {path}: {data.size} bytes that are no image, or a damaged one.")
    return image.astype(np.uint8, copy=False)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read raw ids [H, W] from a greyscale or palette image of 8 bits; a palette's indices are the ids.

    Raises:
        DatasetError: The file is missing, damaged, or holds colours instead of ids.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, UnidentifiedImageError, SyntaxError):  # Pillow raises SyntaxError on broken PNG chunks
        raise DatasetError(f"cannot read {path}: no image, or a damaged one.") from None
    if picture.mode not in ("L", "P"):
        raise DatasetError(f"{path} is no mask of ids: it has mode {picture.mode}, not 8-bit greyscale or palette.")
    return np.array(picture, np.uint8)
