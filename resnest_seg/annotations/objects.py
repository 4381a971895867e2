"""The common form of all label formats: data sets of images, of objects, of parts. Plain values, no pixels yet.

Coordinates are continuous: (0, 0) is the upper left corner of the first pixel, whose centre is (0.5, 0.5), and an image
spans [0, W] x [0, H]. Readers of formats whose vertices are pixel indices add one half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""Corners (x, y) of a closed line, [N, 2], N >= 1; the last is joined to the first."""


class Rings(NamedTuple):
    """An area between rings.

    Attributes:
        rings: A pixel belongs if its centre is inside an odd number of them; with `closed`, if it is inside the first
            or on it, and neither inside nor on another.
        closed: Pixels whose centre lies exactly on a ring belong to it, as in tools that draw pixel indices.
    """

    rings: tuple[Ring, ...]
    closed: bool = False


class Patch(NamedTuple):
    """A rectangle of pixels.

    Attributes:
        top: First row.
        left: First column.
        mask: True where pixels belong, bool [h, w].
    """

    top: int
    left: int
    mask: NDArray[np.bool_]


Part = Rings | Patch


@dataclasses.dataclass(frozen=True)
class AnnotatedObject:
    """One labelled object of an image.

    Attributes:
        label: Its class; None for pixels that are not to be trained on.
        parts: Its areas, which are united.
        place: Where it is written, for messages.
        crowd: It stands for many objects, and its outline is rough.
        level: Its height above others, where the format has one.
        dropped: Why it cannot be drawn, in a few words; empty if it can.
    """

    label: str | None
    parts: tuple[Part, ...]
    place: str
    crowd: bool = False
    level: float = 0
    dropped: str = ""


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """One photo and how to get its objects.

    Attributes:
        name: Path of the result below `images/`, with the photo's suffix and without the split: "sub/photo.jpg".
        photo: The photo's file, or a function that returns its content.
        place: Where the image is written, for messages.
        objects: (height, width) of the photo as it is shown -> its objects, in the order of the file.
        size: (height, width) that the annotation states, or None.
        split: "train", "val", "test", or None.
        mask: The file of its mask, if it has one; a change of it makes another data set.
    """

    name: str
    photo: Path | Callable[[], bytes]
    place: str
    objects: Callable[[int, int], Iterable[AnnotatedObject]]
    size: tuple[int, int] | None = None
    split: str | None = None
    mask: Path | None = None


Order = Literal["list", "area", "level"]
"""Rules for overlaps: the later object in the file is on top; the smaller one; the higher level."""


@dataclasses.dataclass(frozen=True)
class AnnotatedSet:
    """A data set in some format.

    Attributes:
        classes: Class name -> its colour, or None, in the order of the format.
        images: The images.
        order: What is drawn on top.
        unlabelled: What pixels without an object are in this format: the class background, or ignored.
        files: The annotation files, whose change makes another data set.
        left_out: Reason -> images that are not among them.
    """

    classes: dict[str, tuple[int, int, int] | None]
    images: Sequence[AnnotatedImage]
    order: Order
    unlabelled: Literal["background", "ignore"]
    files: Sequence[Path]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How a source is read.

    Attributes:
        photos: The folder in which photos are looked up, instead of those usual in the format.
        numbers: Class names by number, for masks of numbers that come without names; None for ignored numbers.
        field: The property that holds a feature's class (GeoJSON, GeoPackage).
        reduce_labels: In tables, 0 is ignored and i is class i - 1 (Hugging Face's do_reduce_labels).
    """

    photos: Path | None = None
    numbers: Mapping[int, str | None] = dataclasses.field(default_factory=dict)
    field: str | None = None
    reduce_labels: bool = False


BACKGROUND_NAMES = ("background", "_background_", "__background__")
"""Class names, in lower case, that mean pixels without an object."""

IGNORE_NAMES = ("__ignore__", "void", "ignore")
"""Class names, in lower case, that mean pixels that are not to be trained on, unless the user's list has them."""
