"""Polygons hold their pixels and no others: areas, drawings and rules of the format, on any label map."""

import itertools
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.outlines import polygons, write_polygons
from resnest_seg.labels import LabelSpace

SPACE = LabelSpace.numbered(3)

FRAMES = np.array([[min(r, c, 8 - r, 8 - c) % 2 for c in range(9)] for r in range(9)], np.uint8)  # holes in holes
PINCHED = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], np.uint8)  # a region that touches itself at a corner
EYES = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], np.uint8)  # holes that touch at a corner
DIAGONAL = np.eye(5, dtype=np.uint8)
LONE = np.where(DIAGONAL, 2, 255).astype(np.uint8)

label_maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))
)


def inside(ring, x, y):
    """Whether a point is inside a ring, by counting the sides that a ray to the right crosses."""
    crossings = 0
    for (x0, y0), (x1, y1) in itertools.pairwise(ring):
        if (y0 > y) != (y1 > y):
            crossings += x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    return crossings % 2 == 1


def drawn(collection, shape):
    """Labels again, from the pixels' centres; a pixel in no polygon is ignored, and none is in two."""
    labels = np.full(shape, 255, np.uint8)
    for feature in collection["features"]:
        for exterior, *holes in feature["geometry"]["coordinates"]:
            for r, c in np.ndindex(shape):
                point = (c + 0.5, r + 0.5)
                if inside(exterior, *point) and not any(inside(hole, *point) for hole in holes):
                    assert labels[r, c] == 255
                    labels[r, c] = feature["properties"]["train_id"]
    return labels


def signed_area(ring):
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) / 2


def check(labels):
    collection = json.loads(json.dumps(polygons(labels, SPACE)))
    assert np.array_equal(drawn(collection, labels.shape), labels)
    present = [int(label) for label in np.unique(labels) if label != 255]
    assert [feature["properties"]["train_id"] for feature in collection["features"]] == present
    for feature in collection["features"]:
        label = feature["properties"]["train_id"]
        shapes = feature["geometry"]["coordinates"]
        rings = [ring for polygon in shapes for ring in polygon]
        assert sum(map(signed_area, rings)) == feature["properties"]["area"] == (labels == label).sum()
        assert len(shapes) == cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=4)[0] - 1
        for exterior, *holes in shapes:
            assert signed_area(exterior) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
        for ring in rings:
            assert ring[0] == ring[-1]
            assert len(ring) >= 4
            assert len({tuple(point) for point in ring}) == len(ring) - 1, "a ring visits a point twice"
            ahead = [(x1 != x0, y1 != y0) for (x0, y0), (x1, y1) in itertools.pairwise(ring)]
            assert set(ahead) == {(True, False), (False, True)}
            assert all(one != two for one, two in zip(ahead, ahead[1:] + ahead[:1], strict=True)), "no corner"


@settings(deadline=None, max_examples=150)
@given(label_maps)
def test_polygons_are_exact_on_any_label_map(labels):
    check(labels)


@pytest.mark.parametrize("labels", [FRAMES, PINCHED, 1 - PINCHED, EYES, DIAGONAL, LONE, np.zeros((1, 1), np.uint8)])
def test_awkward_shapes(labels):
    check(np.ascontiguousarray(labels))
    check(np.ascontiguousarray(labels[::-1].T))


def test_one_pixel_and_its_hole():
    labels = np.zeros((3, 4), np.uint8)
    labels[1, 2] = 1
    road, car = polygons(labels, SPACE)["features"]
    assert car["geometry"] == {"type": "MultiPolygon", "coordinates": [[[[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]]]}
    (exterior, hole), *more = road["geometry"]["coordinates"]
    assert not more
    assert exterior == [[0, 0], [4, 0], [4, 3], [0, 3], [0, 0]]
    assert sorted(map(tuple, hole[1:])) == [(2, 1), (2, 2), (3, 1), (3, 2)]


def test_a_drawing_by_opencv_gives_a_large_map_back():
    """Filled by OpenCV at four times the size, where pixel edges lie between pixels that are looked at."""
    random = np.random.default_rng(0)
    noise = np.stack([cv2.GaussianBlur(random.normal(size=(120, 170)), (0, 0), 3) for _ in range(3)])
    labels = noise.argmax(0).astype(np.uint8)
    again = np.full(labels.shape, 255, np.uint8)
    for feature in polygons(labels, SPACE)["features"]:
        for rings in feature["geometry"]["coordinates"]:
            canvas = np.zeros((480, 680), np.uint8)
            cv2.fillPoly(
                canvas, [4 * np.array(ring, np.int32) for ring in rings], 1
            )  # even-odd; borders too, and no centre is on one
            again[canvas[2::4, 2::4] == 1] = feature["properties"]["train_id"]
    assert np.array_equal(again, labels)


def test_properties_and_extent(tiny_space):
    labels = np.array([[0, 2], [2, 255]], np.uint8)
    collection = polygons(labels, tiny_space)
    assert collection["bbox"] == [0, 0, 2, 2]
    assert [feature["properties"] for feature in collection["features"]] == [
        {"name": "sky", "train_id": 0, "raw_id": 1, "color": "#0a14c8", "area": 1},
        {"name": "car", "train_id": 2, "raw_id": 7, "color": "#c81e1e", "area": 2},
    ]
    assert polygons(np.full((2, 2), 255, np.uint8), tiny_space)["features"] == []


def test_small_regions_are_left_out_and_stay_holes():
    labels = np.zeros((9, 9), np.uint8)
    labels[1:3, 1:3], labels[5, 5], labels[7, 7] = 1, 1, 2
    road, car = polygons(labels, SPACE, min_area=2)["features"]
    assert car["properties"]["area"] == 4
    assert len(car["geometry"]["coordinates"]) == 1
    assert len(road["geometry"]["coordinates"][0]) == 4  # the exterior and three holes


def test_simplified_rings_stay_near_and_are_shorter():
    yy, xx = np.mgrid[:80, :80]
    labels = ((yy - 40) ** 2 + (xx - 40) ** 2 < 900).astype(np.uint8)
    labels[0, 0] = 2  # a square of four corners: nothing to leave out, and never nothing
    exact = polygons(labels, SPACE)["features"]
    fewer = polygons(labels, SPACE, simplify=1.0)["features"]
    (disc,), (rough,) = exact[1]["geometry"]["coordinates"][0], fewer[1]["geometry"]["coordinates"][0]
    assert len(rough) < len(disc) / 2
    assert {tuple(point) for point in rough} <= {tuple(point) for point in disc}
    assert abs(signed_area(rough) - signed_area(disc)) < 1.0 * 2 * np.pi * 30
    far = [abs(np.hypot(x - 40.5, y - 40.5) - 30) for x, y in rough]
    assert max(far) < 1.5
    assert fewer[2] == polygons(labels, SPACE, simplify=5.0)["features"][2] == exact[2]
    assert fewer[1]["properties"] == exact[1]["properties"]


def test_files(tmp_path, tiny_space):
    write_polygons(tmp_path / "new" / "a.geojson", PINCHED, tiny_space, min_area=2)
    assert json.loads((tmp_path / "new" / "a.geojson").read_text(encoding="utf-8")) == polygons(
        PINCHED, tiny_space, min_area=2
    )
    with pytest.raises(ConfigError, match=r"saved as .geojson or .json, not as .*a\.png"):
        write_polygons(tmp_path / "a.png", PINCHED, tiny_space)
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "a.geojson"]


def test_bad_values(tiny_space):
    with pytest.raises(DatasetError, match=r"label out of range: \[3, 200\] in a label space of 3"):
        polygons(np.array([[3, 200, 255]], np.uint8), tiny_space)
    for options in ({"simplify": -1.0}, {"simplify": float("nan")}, {"simplify": float("inf")}, {"min_area": -1}):
        with pytest.raises(ConfigError, match="must be from 0 to"):
            polygons(PINCHED, tiny_space, **options)
