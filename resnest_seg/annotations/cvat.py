"""CVAT for images 1.1: annotations.xml.

Shapes of a higher z_order are on top, among equals the later one. The runs of a mask are counted along the rows of its
box. What has no shape is background. The file is read as a stream, and entities in it are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnest_seg.annotations.objects import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSet,
    Part,
    Patch,
    ReadOptions,
    Rings,
)
from resnest_seg.annotations.raster import FARTHEST, ellipse, rectangle, rotated, runs_to_mask
from resnest_seg.annotations.reading import Item, Photos, color_of, is_finite, parse_xml, shown, split_in, without_root
from resnest_seg.errors import DatasetError, printable

MOST_EDGE = 1 << 20
"""Height or width of an image, at most."""

UNDRAWN = {"polyline": "a line", "points": "a set of points", "cuboid": "a cuboid", "skeleton": "a skeleton",
           "tag": "a tag of the whole image"}  # fmt: skip
"""Elements of an image without an area -> what they are."""


class _Element(NamedTuple):
    tag: str
    attributes: Mapping[str, str]
    place: str

    def text(self, key: str) -> str:
        value = self.attributes.get(key)
        if value is None:
            raise DatasetError(
                f"{self.place}: the element {self.tag} has no attribute {key}, only {shown(list(self.attributes))}."
            )
        return value

    def number(self, key: str, low: float = -FARTHEST, high: float = FARTHEST) -> float:
        try:
            value = float(self.text(key))
        except ValueError:
            value = float("nan")
        if not is_finite(value) or not low <= value <= high:
            raise DatasetError(
                f"{self.place}: {key} must be a number from {low:g} to {high:g}, not {shown(self.text(key))}."
            )
        return value

    def whole(self, key: str, low: int, high: int) -> int:
        value = self.number(key, low, high)
        if value != int(value):
            raise DatasetError(f"{self.place}: {key} must be a whole number, not {shown(self.text(key))}.")
        return int(value)


class _Document:
    """State of the streaming parser."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, printable(str(path))
        self.labels: dict[str, tuple[int, int, int] | None] = {}
        self.images: list[tuple[_Element, list[_Element]]] = []
        self._label = ""

    def start(self, names: list[str], attributes: dict[str, str], line: int) -> None:
        if len(names) == 1 and names[0] != "annotations":
            raise DatasetError(f"{self.name} is no file of CVAT: its root is {shown(names[0])}, not 'annotations'.")
        element = _Element(names[-1], attributes, f"{self.name}, line {line}")
        if names == ["annotations", "track"]:
            raise DatasetError(
                f"{element.place}: this is 'CVAT for video', with tracks: export as 'CVAT for images 1.1', or as COCO."
            )
        if names == ["annotations", "image"]:
            self.images.append((element, []))
        elif names[:2] == ["annotations", "image"] and len(names) == 3:
            self.images[-1][1].append(element)

    def end(self, names: list[str], text: str) -> None:
        if names[-2:] == ["label", "name"]:
            if text in self.labels:
                raise DatasetError(f"{self.name}: the label {shown(text)} is listed twice.")
            self._label = text
            self.labels[text] = None
        elif names[-2:] == ["label", "color"] and self._label and text:
            self.labels[self._label] = color_of(Item(text, f"{self.name}: colour of the label {shown(self._label)}"))


def is_cvat(path: Path) -> bool:
    """True if a file begins as one of CVAT."""
    try:
        with open(path, "rb") as file:
            return b"<annotations" in file.read(4096)
    except OSError:
        return False


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read an annotations.xml, or the folder that holds it.

    Raises:
        DatasetError: The file is damaged, or holds a value that cannot be; a photo is missing.
    """
    file = source if source.is_file() else source / "annotations.xml"
    document = _Document(file)
    parse_xml(file, document.start, document.end)
    if not document.images:
        raise DatasetError(f"{document.name} holds no image.")
    photos = Photos([options.photos] if options.photos else [file.parent / "images", file.parent], below=options.photos)
    images, seen = [], set[tuple[str, str]]()
    for image, elements in document.images:
        name, subset = image.text("name"), image.attributes.get("subset", "")
        if (name, subset) in seen:
            raise DatasetError(f"{image.place}: the image {shown(name)} is listed twice.")
        seen.add((name, subset))
        size = image.whole("height", 1, MOST_EDGE), image.whole("width", 1, MOST_EDGE)
        below = [part for part in without_root(subset) if part != ".."]
        inner = Photos([root.joinpath(*below) for root in photos.roots]) if below else photos
        try:
            photo, found = inner.find(name, image.place)
        except DatasetError:
            photo, found = photos.find(name, image.place)

        def objects(height: int, width: int, those: Sequence[_Element] = elements) -> Iterator[AnnotatedObject]:
            for element in those:
                yield _object(element, document.labels, height, width)

        images.append(
            AnnotatedImage(found, photo, f"{image.place}: image {shown(name)}", objects, size, split_in(subset))
        )
    labels = document.labels or dict.fromkeys(
        sorted({element.text("label") for _, elements in document.images for element in elements})
    )
    return AnnotatedSet(labels, images, "level", "background", [file])


def _object(element: _Element, labels: Mapping[str, object], height: int, width: int) -> AnnotatedObject:
    label = element.text("label")
    if labels and label not in labels:
        raise DatasetError(f"{element.place}: the label {shown(label)} is not one of {shown(list(labels))}.")
    if element.tag in UNDRAWN:
        return AnnotatedObject(label, (), element.place, dropped=UNDRAWN[element.tag])
    if element.tag not in _PARTS:
        raise DatasetError(f"{element.place}: unknown shape {shown(element.tag)}; known: {', '.join(_PARTS)}.")
    level = element.number("z_order") if "z_order" in element.attributes else 0.0
    return AnnotatedObject(label, (_PARTS[element.tag](element, height, width),), element.place, level=level)


def _polygon(element: _Element, height: int, width: int) -> Part:
    text = element.text("points")
    try:
        points = np.array([[float(word) for word in pair.split(",")] for pair in text.split(";") if pair.strip()])
    except ValueError:
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise DatasetError(f"{element.place}: points must be at least three of the form x,y;x,y, not {shown(text)}.")
    if not (np.abs(points) <= FARTHEST).all():
        raise DatasetError(
            f"{element.place}: points hold the coordinate {points[~(np.abs(points) <= FARTHEST)][0]}: they must lie "
            f"within {FARTHEST:g} pixels."
        )
    return Rings((points,))


def _rotation(element: _Element) -> float:
    return element.number("rotation", -3600, 3600) if "rotation" in element.attributes else 0.0


def _box(element: _Element, height: int, width: int) -> Part:
    left, top, right, bottom = (element.number(key) for key in ("xtl", "ytl", "xbr", "ybr"))
    ring = rectangle(left, top, right, bottom)
    return Rings((rotated(ring, ((left + right) / 2, (top + bottom) / 2), _rotation(element)),))


def _ellipse(element: _Element, height: int, width: int) -> Part:
    x, y, across, down = (element.number(key) for key in ("cx", "cy", "rx", "ry"))
    return Rings((ellipse(x, y, abs(across), abs(down), _rotation(element)),))


def _mask(element: _Element, height: int, width: int) -> Part:
    left, top = element.whole("left", 0, width - 1), element.whole("top", 0, height - 1)
    columns, rows = element.whole("width", 1, width - left), element.whole("height", 1, height - top)
    text = element.text("rle")
    try:
        counts = [int(word) for word in text.split(",") if word.strip()]
        return Patch(top, left, runs_to_mask(counts, rows, columns, by_columns=False))
    except (ValueError, OverflowError) as error:
        raise DatasetError(
            f"{element.place}: the rle {shown(text)} is no mask of {rows} x {columns}: {error}."
        ) from None


_PARTS = {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}
