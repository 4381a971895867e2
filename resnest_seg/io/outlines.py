"""Labels as polygons: GeoJSON that QGIS, labelme's converters and shapely read.

Polygons run along the *edges* of pixels, not through their centres as `cv2.findContours` does: the pixel at row r and
column c is the square from (c, r) to (c + 1, r + 1). So a polygon's area is its number of pixels, a region one pixel
wide does not collapse to a line, and rasterising the polygons gives the labels back.

Method: every side of a pixel whose neighbour belongs to another region becomes a directed edge with its pixel on the
right. Every edge has one successor, determined for all edges at once from the two pixels ahead. Following the
successors gives closed rings. Where a region touches itself at a corner, the path crosses over to the other pixel of
the region: thus no ring visits a point twice, and a background pixel enclosed by such a corner is a hole that touches
the exterior in one point, which is what the Simple Features standard (OGC 06-103r4, 6.1.11.1) allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.files import atomic_write
from resnest_seg.labels import IGNORE_LABEL, LabelSpace, bits_to_labels

Ring = NDArray[np.int32]
"""Corners (x, y) in order, [N, 2], without a repeated first corner at the end."""

# By direction of an edge: right (above its pixel), down (right of it), left (below it), up (left of it).
MOST_OFF = 10_000
"""Upper bound of `simplify`, in pixels."""

MOST_AREA = 10**9
"""Largest `min_area`, in pixels."""

_DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))
_START = ((0, 0), (0, 1), (1, 1), (1, 0))  # (row, column) of its first point, seen from its pixel's upper left corner


def polygons(labels: NDArray[Any], space: LabelSpace, *, simplify: float = 0.0, min_area: int = 0) -> dict[str, Any]:
    """Convert labels to a GeoJSON FeatureCollection: one MultiPolygon Feature per present class, in train-id order.

    A polygon is a region of pixels of one class that are joined by their sides, with its holes; regions that touch at
    corners are polygons that touch in a point. Coordinates are pixels from the image's upper left corner, x to the
    right and y down. Rings are closed (the last position is the first) and oriented as RFC 7946, 3.1.6 asks of the
    numbers: the signed area of exteriors is positive, of holes negative; as y points down, exteriors run clockwise on
    the screen. (A map program draws y upwards and shows the picture mirrored.) Ignored pixels are in no polygon. A
    Feature's properties are `name`, `train_id`, `raw_id`, `color` ("#rrggbb") and `area`, the pixels of its polygons.

    Args:
        labels: Train ids [H, W].
        space: Their label space.
        simplify: Tolerance of Douglas-Peucker simplification in pixels. Rings are simplified one by one: neighbours
            then no longer share their border exactly, and rings may cross. 0 keeps every corner.
        min_area: Drop regions with fewer pixels. They stay holes in the regions around them.

    Raises:
        DatasetError: A label is neither a class nor `IGNORE_LABEL`.
        ConfigError: An option is out of range.
    """
    check_polygon_options(labels, space, simplify=simplify, min_area=min_area)
    shapes: dict[int, list[list[list[list[int]]]]] = {}
    areas: dict[int, int] = {}
    for label, area, rings in regions_of(labels, space):
        if area >= min_area:
            shapes.setdefault(label, []).append([_closed(ring, simplify) for ring in rings])
            areas[label] = areas.get(label, 0) + area
    features = [
        {
            "type": "Feature",
            "properties": {
                "name": space.names[label],
                "train_id": label,
                "raw_id": space.raw_ids[label],
                "color": "#{:02x}{:02x}{:02x}".format(*space.colors[label]),
                "area": areas[label],
            },
            "geometry": {"type": "MultiPolygon", "coordinates": shapes[label]},
        }
        for label in sorted(shapes)
    ]
    return {"type": "FeatureCollection", "bbox": [0, 0, labels.shape[1], labels.shape[0]], "features": features}


def check_polygon_options(labels: NDArray[Any], space: LabelSpace, *, simplify: float, min_area: int) -> None:
    """Check what `polygons` is called with; see there for the errors."""
    for name, value, most in (("simplify", simplify, MOST_OFF), ("min_area", min_area, MOST_AREA)):
        if not 0 <= value <= most:  # false for NaN
            raise ConfigError(f"{name}, in pixels, must be from 0 to {most}, not {value}.")
    if space.task == "multilabel":
        bits_to_labels(labels, len(space))
        return
    strangers = [int(label) for label in np.unique(labels) if len(space) <= label != IGNORE_LABEL]
    if strangers:
        raise DatasetError(f"label out of range: {strangers[:8]} in a label space of {len(space)} classes.")


def write_polygons(
    path: str | Path, labels: NDArray[Any], space: LabelSpace, *, simplify: float = 0.0, min_area: int = 0
) -> None:
    """Write labels as a GeoJSON file, atomically; see `polygons` for the options and errors.

    Raises:
        ConfigError: The ending is neither .geojson nor .json.
    """
    if Path(path).suffix.lower() not in (".geojson", ".json"):
        raise ConfigError(f"polygons are saved as .geojson or .json, not as {path}.")
    collection = polygons(labels, space, simplify=simplify, min_area=min_area)
    with atomic_write(path) as temporary:
        text = json.dumps(collection, separators=(",", ":"), ensure_ascii=False)
        # ASCII: a lone surrogate in a class name, which UTF-8 cannot hold, becomes JSON's escape \udXXX
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def regions_of(labels: NDArray[Any], space: LabelSpace) -> Iterator[tuple[int, int, list[Ring]]]:
    """Yield the `regions` of labels [H, W]; of multi-label bits, those of each label, which may overlap."""
    if space.task != "multilabel":
        yield from regions(labels)
        return
    for label, plane in enumerate(bits_to_labels(labels, len(space)).present):
        yield from regions(np.where(plane, label, IGNORE_LABEL).astype(np.uint8))


def regions(labels: NDArray[np.uint8]) -> list[tuple[int, int, list[Ring]]]:
    """Return (label, pixels, rings) of every region of labels [H, W]; the first ring is the exterior.

    A region is what `polygons` says; rings are not closed, and ignored pixels are in no region.
    """
    if not labels.size:
        return []
    region = _components(labels)
    sizes = np.bincount(region.ravel())
    label_of = np.zeros(len(sizes), np.int64)
    label_of[region.ravel()] = labels.ravel()
    rings: dict[int, list[Ring]] = {}
    for owner, ring in _rings(region, labels != IGNORE_LABEL):
        rings.setdefault(owner, []).append(ring)
    # The exterior comes first, because paths start at upper sides from the top down; the others are holes.
    return [(int(label_of[owner]), int(sizes[owner]), region_rings) for owner, region_rings in rings.items()]


def _components(labels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return component numbers [H, W] of 4-connected pixels with equal labels.

    One pass serves all classes: on a grid twice as fine, the points set are the pixels and those between two pixels of
    equal label.
    """
    height, width = labels.shape
    fine = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    fine[::2, ::2] = 1
    fine[1::2, ::2] = labels[1:] == labels[:-1]
    fine[::2, 1::2] = labels[:, 1:] == labels[:, :-1]
    _, numbers = cv2.connectedComponents(fine, connectivity=4, ltype=cv2.CV_32S)
    return np.ascontiguousarray(numbers[::2, ::2]).astype(np.int32, copy=False)


def _rings(region: NDArray[np.int32], wanted: NDArray[np.bool_]) -> list[tuple[int, Ring]]:
    """Return (region, ring) of every closed path along the borders of the wanted regions, its pixels on the right."""
    outside = cv2.copyMakeBorder(region, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=-1)
    width, size = outside.shape[1], outside.size
    flat = outside.ravel()
    inside = np.flatnonzero(cv2.copyMakeBorder(wanted.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0))
    steps = [down * width + right for down, right in _DIRECTIONS]
    # An edge is an integer: its direction times `size` plus its pixel. Edges are created in increasing order.
    edges, followers = [], []
    for turn, ahead in enumerate(steps):
        left = steps[turn - 1]
        pixels = inside[flat[inside] != flat[inside + left]]
        own = flat[pixels]
        straight = np.where(flat[pixels + ahead] == own, turn * size + pixels + ahead, (turn + 1) % 4 * size + pixels)
        crossing = flat[pixels + ahead + left] == own
        edges.append(turn * size + pixels)
        followers.append(np.where(crossing, (turn - 1) % 4 * size + pixels + ahead + left, straight))
    edge, follower = np.concatenate(edges), np.concatenate(followers)
    direction, pixel = np.divmod(edge, size)
    row, column = np.divmod(pixel, width)
    first = np.array(_START)[direction]
    points = np.stack([column + first[:, 1], row + first[:, 0]], axis=1).astype(np.int32) - 1  # without the border of 1
    following = np.searchsorted(edge, follower)
    corner = np.zeros(len(edge), bool)
    corner[following] = direction != direction[following]  # where an edge starts in another direction than the last
    return [(int(flat[pixel[path[0]]]), points[path]) for path in _cycles(following.tolist(), corner.tolist())]


def _cycles(following: list[int], kept: list[bool]) -> list[list[int]]:
    """Return the cycles of a permutation, restricted to the elements that are `kept`."""
    seen = bytearray(len(following))
    cycles = []
    for start in range(len(following)):
        if seen[start]:
            continue
        cycle, element = [], start
        while not seen[element]:
            seen[element] = 1
            if kept[element]:
                cycle.append(element)
            element = following[element]
        cycles.append(cycle)
    return cycles


def _signed_area(ring: Ring) -> float:
    """Return the signed area of a ring: positive (x turns towards y) for exteriors, negative for holes."""
    x, y = ring.astype(np.int64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _closed(ring: Ring, simplify: float) -> list[list[int]]:
    """Return a ring's GeoJSON positions, simplified."""
    positions: list[list[int]] = simplified(ring, simplify).tolist()
    return [*positions, positions[0]]


def simplified(ring: Ring, simplify: float) -> Ring:
    """Simplify a ring by `simplify` pixels; one that would collapse or reverse stays as it is."""
    if simplify > 0:
        fewer = cv2.approxPolyDP(ring[:, None], simplify, True).reshape(-1, 2).astype(np.int32, copy=False)
        if len(fewer) >= 3 and _signed_area(fewer) * _signed_area(ring) > 0:
            return fewer
    return ring
