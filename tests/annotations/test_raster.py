"""Outlines become the pixels whose centres they hold: against pycocotools, PIL, a plain form, and laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as cocomask

from resnest_seg.annotations import raster
from resnest_seg.annotations.objects import Patch, Rings
from resnest_seg.annotations.raster import (
    draw,
    ellipse,
    format_runs,
    mask_to_runs,
    parse_runs,
    rectangle,
    rotated,
    runs_to_mask,
)


def pixels(*parts, shape=(40, 40)):
    mask, patch = np.zeros(shape, bool), draw(parts, *shape)
    if patch is not None:
        rows, columns = patch.mask.shape
        mask[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.mask
    return mask


def blob(random, *, centre=60, radius=(8, 45)):
    corners, size = random.integers(3, 20), random.uniform(*radius)
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    reach = size * random.uniform(0.5, 1.2, corners)
    middle = random.uniform(centre - 10, centre + 10, 2)
    return middle + np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)


def true_area(ring):
    x, y = ring.T
    return abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def plain(rings, shape):
    """A pixel belongs if a ray from its centre to the left crosses an odd number of sides."""
    mask = np.zeros(shape, bool)
    for r, c in np.ndindex(shape):
        x, y, crossings = c + 0.5, r + 0.5, 0
        for ring in rings:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (y0 < y) != (y1 < y):
                    crossings += x0 + (y - y0) / (y1 - y0) * (x1 - x0) < x
        mask[r, c] = crossings % 2 == 1
    return mask


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
def test_areas_are_those_of_pycocotools_within_a_percent_and_of_geometry():
    random, ours, coco, true, each = np.random.default_rng(0), 0, 0, 0.0, []
    for _ in range(300):
        ring = blob(random)
        if true_area(ring) < 30:
            continue
        mask = pixels(Rings((ring,)), shape=(120, 120))
        theirs = cocomask.decode(cocomask.frPyObjects([ring.ravel().tolist()], 120, 120))[..., 0].astype(bool)
        assert (mask != theirs).sum() <= 0.05 * theirs.sum() + 6  # its border is upsampled by 5 and rounded
        ours, coco, true = ours + mask.sum(), coco + theirs.sum(), true + true_area(ring)
        each.append(abs(mask.sum() / true_area(ring) - 1))
    assert len(each) > 250
    assert abs(ours / coco - 1) < 0.01
    assert abs(ours / true - 1) < 0.001
    assert np.mean(each) < 0.01


def test_a_square_between_pixels_is_exact_and_a_sliver_is_nothing():
    mask = pixels(Rings((rectangle(2, 2, 6, 6),)))
    assert mask.sum() == 16
    assert mask[2:6, 2:6].all()
    assert draw([Rings((rectangle(2, 2, 6, 2.3),))], 9, 9) is None
    assert draw([Rings((rectangle(50, 2, 60, 9),))], 9, 9) is None


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_even_odd_rule_is_that_of_a_plain_form(seed, count):
    """Also for rings that cross themselves and one another, and reach beyond the image."""
    random = np.random.default_rng(seed)
    rings = tuple(random.uniform(-5, 20, (random.integers(3, 8), 2)) for _ in range(count))
    assert np.array_equal(pixels(Rings(rings), shape=(12, 15)), plain(rings, (12, 15)))


def test_areas_that_share_edges_share_no_pixel_and_leave_none_out():
    """Corners on the centres of pixels, the hardest place: a fan of triangles fills a square once."""
    random = np.random.default_rng(1)
    for _ in range(50):
        corners = np.array([[0, 0], [20, 0], [20, 20], [0, 20]], float) + 0.5
        hub = random.integers(1, 20, 2) + 0.5
        count = np.zeros((24, 24), int)
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            count += pixels(Rings((np.array([start, end, hub]),)), shape=(24, 24))
        whole = pixels(Rings((corners,)), shape=(24, 24))
        assert np.array_equal(count, whole.astype(int))
        assert whole.sum() == 400


def test_holes_are_cut_and_parts_are_united():
    outer, inner = rectangle(1, 1, 9, 9), rectangle(3, 3, 6, 6)
    assert pixels(Rings((outer, inner))).sum() == 64 - 9
    assert pixels(Rings((outer,)), Rings((inner,))).sum() == 64
    far = Patch(20, 30, np.ones((2, 3), bool))
    assert pixels(Rings((outer, inner)), far).sum() == 64 - 9 + 6


def test_closed_rings_hold_their_border_as_pillow_draws_it():
    random, ours, pil = np.random.default_rng(2), 0, 0
    for _ in range(200):
        ring = np.rint(blob(random))
        mask = pixels(Rings((ring + 0.5,), closed=True), shape=(120, 120))
        picture = Image.new("1", (120, 120))
        ImageDraw.Draw(picture).polygon([tuple(point) for point in ring.tolist()], fill=1, outline=1)
        drawn = np.array(picture)
        assert not (mask & ~drawn).any()  # it draws each pixel that the line passes, ours are on or within the line
        inside = pixels(Rings((ring + 0.5,)), shape=(120, 120))
        corners = ring.astype(int)
        assert mask[corners[:, 1], corners[:, 0]].all()
        assert not (inside & ~mask).any()
        ours, pil = ours + mask.sum(), pil + drawn.sum()
    assert 0.9 < ours / pil <= 1


@pytest.mark.parametrize(
    "ring", [[[2, 2], [6, 2], [6, 6], [2, 6]], [[3, 3], [7, 3]], [[4, 4]], [[2, 2], [6, 6]], [[2, 2], [8, 2], [5, 5]]]
)
def test_closed_rings_of_lines_and_points_are_those_of_pillow(ring):
    picture = Image.new("1", (12, 12))
    points = [tuple(point) for point in ring]
    drawing = ImageDraw.Draw(picture)
    drawing.polygon(points, fill=1, outline=1) if len(ring) > 2 else drawing.line(points * (3 - len(ring)), fill=1)
    mask = pixels(Rings((np.array(ring, float) + 0.5,), closed=True), shape=(12, 12))
    assert np.array_equal(mask, np.array(picture))


def test_a_closed_hole_takes_its_border_with_it():
    outer, inner = rectangle(0.5, 0.5, 8.5, 8.5), rectangle(2.5, 2.5, 4.5, 4.5)
    mask = pixels(Rings((outer, inner), closed=True))
    assert mask.sum() == 81 - 9
    assert not mask[2:5, 2:5].any()


def test_patches_are_clipped_at_every_side():
    ones = np.ones((4, 4), bool)
    assert pixels(Patch(-2, -1, ones), shape=(6, 6)).sum() == 2 * 3
    assert pixels(Patch(4, 5, ones), shape=(6, 6)).sum() == 2 * 1
    for top, left in ((-4, 0), (0, -9), (6, 0), (0, 6)):
        assert draw([Patch(top, left, ones)], 6, 6) is None


def test_ellipses_and_rotation():
    mask = pixels(Rings((ellipse(20, 20, 15, 8),)))
    assert abs(mask.sum() / (np.pi * 15 * 8) - 1) < 0.01
    assert np.array_equal(pixels(Rings((ellipse(20, 20, 15, 8, 90),))), pixels(Rings((ellipse(20, 20, 8, 15),))))
    turned = rotated(rectangle(0, 0, 4, 2), (0, 0), 90)  # clockwise on the screen: right becomes down
    assert np.allclose(turned, [[0, 0], [0, 4], [-2, 4], [-2, 0]])


masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(bool, shape))


@settings(deadline=None, max_examples=80)
@given(masks)
def test_run_lengths_are_those_of_pycocotools(mask):
    theirs = cocomask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    counts = mask_to_runs(mask, by_columns=True)
    assert format_runs(counts) == theirs
    assert parse_runs(theirs) == counts
    assert np.array_equal(runs_to_mask(counts, *mask.shape, by_columns=True), mask)
    assert np.array_equal(runs_to_mask(mask_to_runs(mask, by_columns=False), *mask.shape, by_columns=False), mask)


def test_long_runs_and_the_example_of_the_format():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    assert format_runs(mask_to_runs(mask, by_columns=True)) == "5220003"
    counts = [0, 70000, 3, 1 << 20, 7, 5, 1 << 22]
    assert parse_runs(format_runs(counts)) == counts


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([5, -1, 16], "a run of length -1"),
        ([5, 10**12], "a run of length 1000000000000"),
        ([5, 5], "the runs cover 10 pixels"),
        ([], "the runs cover 0 pixels"),
    ],
)
def test_wrong_run_lengths_are_refused(counts, says):
    with pytest.raises(ValueError, match=says):
        runs_to_mask(counts, 4, 5, by_columns=True)


@pytest.mark.parametrize(("text", "says"), [("5\n", "is '.n'"), ("ooooooooo0", "longer than any"), ("5o", "truncated")])
def test_wrong_compressed_run_lengths_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_runs(text)


def test_an_outline_too_intricate_is_refused_before_memory_is_spent(monkeypatch):
    ring = np.array([[column, row] for column in range(500) for row in (0, 2000)], float)
    assert draw([Rings((ring,))], 2000, 500) is not None
    monkeypatch.setattr(raster, "MOST_CROSSINGS", 10**6)
    with pytest.raises(ValueError, match="crosses rows of pixels 2,000,000 times"):
        draw([Rings((ring,))], 2000, 500)


def test_chunks_of_crossings_change_nothing(monkeypatch):
    ring = blob(np.random.default_rng(3))
    whole = pixels(Rings((ring,)), shape=(120, 120))
    monkeypatch.setattr(raster, "_CHUNK", 7)
    assert np.array_equal(pixels(Rings((ring,)), shape=(120, 120)), whole)
