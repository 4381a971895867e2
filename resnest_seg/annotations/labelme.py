"""labelme: one JSON file beside each photo.

Drawn as labelme's own shapes_to_label draws: vertices are pixel indices and the border belongs to the object; later
shapes are on top; lines are 10 pixels wide and points discs of radius 5. `_background_` and `__ignore__` mean what they
mean in its labels.txt. A photo that is not there is taken from the file's imageData.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnest_seg.annotations.objects import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSet,
    Part,
    Patch,
    ReadOptions,
    Ring,
    Rings,
)
from resnest_seg.annotations.raster import ellipse, rectangle
from resnest_seg.annotations.reading import (
    Item,
    Photos,
    from_base64,
    opacity_or_value,
    read_json,
    read_text,
    small_picture,
    walk,
)
from resnest_seg.errors import DatasetError, printable

LINE_WIDTH = 10
"""Pixels."""

POINT_RADIUS = 5
"""Pixels."""

MOST_EDGE = 1 << 20
"""Height or width of an image, at most."""


def is_labelme(value: Any) -> bool:
    """True for the content of a labelme file."""
    return isinstance(value, Mapping) and value.keys() >= {"shapes", "imagePath"}


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read a labelme file, or a folder of them; its labels.txt, if there is one, orders the classes.

    Raises:
        DatasetError: A file is damaged, holds a value that cannot be, or has no photo.
    """
    files = [source] if source.is_file() else walk(source, (".json",))
    base = source.parent if source.is_file() else source
    images, labels, folders = [], set[str](), dict[tuple[Path, Path], Photos]()
    for file in files:
        document = read_json(file)
        if not is_labelme(document.value) and len(files) > 1:
            continue  # another tool's, beside them
        shapes = document["shapes"]
        labels |= {shape["label"].text().strip() for shape in shapes.items()}
        inner = file.parent.relative_to(base)
        leads_out = ".." in document["imagePath"].text().replace("\\", "/").split("/")
        below = Path() if leads_out else inner  # photos elsewhere are in the same subfolders, unless it says otherwise
        roots = [file.parent] if options.photos is None else [options.photos / below, options.photos]
        photos = folders.setdefault((inner, below), Photos(roots, below=options.photos))
        images.append(_image(file, document, inner, below, photos))
    if not images:
        raise DatasetError(f"{printable(str(source))} holds no labelme file (JSON with shapes and imagePath).")
    listing = base / "labels.txt"
    listed = [line.strip() for line in read_text(listing).splitlines() if line.strip()] if listing.is_file() else []
    if listed and labels - set(listed):
        raise DatasetError(
            f"{printable(str(listing))} does not list the label {min(labels - set(listed))!r}, which shapes have."
        )
    return AnnotatedSet(dict.fromkeys(listed or sorted(labels)), images, "list", "background", files)


def _image(file: Path, document: Item, inner: Path, below: Path, photos: Photos) -> AnnotatedImage:
    # What is kept of a file has no imageData: a folder of them would fill the memory.
    kept = Item({"shapes": document["shapes"].value}, document.place)
    word = document["imagePath"].text()
    photo: Any
    try:
        if photos.below is None:
            photo, found = photos.find(word, document.place)
            name = (inner / found).as_posix()
        else:
            photo, _ = photos.find((below / word).as_posix(), document.place)
            name = photo.relative_to(photos.below).as_posix()
    except DatasetError:
        if document.get("imageData") is None:
            raise
        last = word.replace("\\", "/").rpartition("/")[2]
        name = (inner / last).as_posix()

        def photo(file: Path = file) -> bytes:
            return from_base64(read_json(file)["imageData"])

    size = None
    if document.get("imageHeight") is not None and document.get("imageWidth") is not None:
        size = document["imageHeight"].whole(1, MOST_EDGE), document["imageWidth"].whole(1, MOST_EDGE)

    def objects(height: int, width: int) -> Iterator[AnnotatedObject]:
        for shape in kept["shapes"].items():
            yield _object(shape, height, width)

    return AnnotatedImage(name, photo, document.place, objects, size)


def _object(shape: Item, height: int, width: int) -> AnnotatedObject:
    label, kind = shape["label"].text().strip(), shape.get("shape_type")
    form = "polygon" if kind is None else kind.text()
    ignored = None if label.lower() == "__ignore__" else label
    if form == "points":
        return AnnotatedObject(ignored, (), shape.place, dropped="a set of points")
    if form not in _DRAWN and form != "mask":
        raise shape["shape_type"].error(f"one of {', '.join([*_DRAWN, 'mask'])}")
    points = shape["points"].points(1)
    if form == "mask":
        return AnnotatedObject(ignored, (_mask(shape, points, height, width),), shape.place)
    counts = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "point": 1, "oriented_rectangle": 4}
    exact = form in ("rectangle", "circle", "line", "point", "oriented_rectangle")
    if len(points) < counts[form] or (exact and len(points) > counts[form]):
        raise shape["points"].wrong(
            f"a {form} has {counts[form]} points{'' if exact else ' or more'}, not {len(points)}"
        )
    parts = tuple(_DRAWN[form](points + 0.5))
    return AnnotatedObject(ignored, parts, shape.place, dropped="" if parts else "a line without length")


def _mask(shape: Item, points: Ring, height: int, width: int) -> Part:
    if len(points) != 2:
        raise shape["points"].wrong(f"a mask has 2 points, not {len(points)}")
    (left, top), (right, bottom) = np.floor(points).astype(int).tolist()
    picture = small_picture(from_base64(shape["mask"]), shape["mask"].place, most=(height, width))
    mask = opacity_or_value(picture)
    if mask.shape != (bottom - top + 1, right - left + 1):
        raise shape["points"].wrong(
            f"the corners span {right - left + 1} x {bottom - top + 1} pixels, and the mask has "
            f"{mask.shape[1]} x {mask.shape[0]}"
        )
    return Patch(top, left, mask)


def _polygon(points: Ring) -> Sequence[Part]:
    return [Rings((points,), closed=True)]


def _rectangle(points: Ring) -> Sequence[Part]:
    return _polygon(rectangle(*points.min(axis=0), *points.max(axis=0)))


def _circle(points: Ring) -> Sequence[Part]:
    (x, y), edge = points
    return _disc(x, y, float(np.hypot(*(edge - points[0]))))


def _line(points: Ring) -> Sequence[Part]:
    parts: list[Part] = []
    for start, end in itertools.pairwise(points):
        length = float(np.hypot(*(end - start)))
        if length:
            side = np.array([start[1] - end[1], end[0] - start[0]]) / length * LINE_WIDTH / 2
            parts.append(Rings((np.array([start + side, end + side, end - side, start - side]),), closed=True))
    return parts


def _point(points: Ring) -> Sequence[Part]:
    return _disc(float(points[0, 0]), float(points[0, 1]), POINT_RADIUS)


def _disc(x: float, y: float, radius: float) -> Sequence[Part]:
    return [Rings((ellipse(x, y, radius + 0.5, radius + 0.5),))]  # with the pixels of its border


_DRAWN = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "oriented_rectangle": _polygon,
    "circle": _circle,
    "line": _line,
    "linestrip": _line,
    "point": _point,
}
