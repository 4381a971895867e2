"""Boundary scores against brute force over all pairs of pixels, the published code's steps, and pictures by hand."""

import dataclasses
import json
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnest_seg.errors import ConfigError
from resnest_seg.evaluation.boundaries import BoundaryScores

CLASSES = 5


def near(ids, truth, label, reach):
    """Sets of pixels: closed boundary region of a class, and closed or open one, by looking at every other pixel."""
    height, width = ids.shape
    closed, either = set(), set()
    for y, x in zip(*np.nonzero((ids == label) & (truth != 255)), strict=True):
        for v in range(y - reach, y + reach + 1):
            for u in range(x - reach, x + reach + 1):
                outside = not (0 <= v < height and 0 <= u < width)
                if outside or (truth[v, u] != 255 and ids[v, u] != label):
                    closed.add((y, x))
                elif truth[v, u] == 255:
                    either.add((y, x))
    return closed, either | closed


def slow_iou(images, width):
    """By class: intersection over union, summed over images."""
    result = []
    for label in range(CLASSES):
        intersection = union = 0
        for truth, found in images:
            reach = max(1, round(width * math.hypot(*truth.shape)))
            (a, a_either), (b, b_either) = (near(ids, truth, label, reach) for ids in (truth, found))
            judged = a | b
            union += len(judged)
            intersection += len(judged & a_either & b_either)
        result.append(intersection / union if union else None)
    return result


def slow_share(points, targets, tolerance):
    hits = [any(math.dist(point, target) <= tolerance + 1e-9 for target in targets) for point in points]
    return np.mean(hits) if hits else 1.0


def slow_f(images, tolerance):
    """By class: mean over the images in which it occurs."""
    result = []
    for label in range(CLASSES):
        scores = []
        for truth, found in images:
            labelled, predicted = ((ids == label) & (truth != 255) for ids in (truth, found))
            if labelled.any() and predicted.any():
                (a, a_either), (b, b_either) = (near(ids, truth, label, 1) for ids in (truth, found))
                limit = tolerance * math.hypot(*truth.shape)
                precision, recall = slow_share(b, a_either, limit), slow_share(a, b_either, limit)
                scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
            elif labelled.any() or predicted.any():
                scores.append(0)
        result.append(np.mean(scores) if scores else None)
    return result


def picture(random, *, ignored=True):
    """Truth and a prediction that resembles it, made of blocks; one class never occurs."""
    height, width, block = random.integers(3, 16), random.integers(3, 16), random.integers(1, 6)

    def blocks():
        small = random.integers(0, CLASSES - 1, (height // block + 1, width // block + 1))
        return np.kron(small, np.ones((block, block), int))[:height, :width].astype(np.uint8)

    truth = blocks()
    found = np.where(random.random(truth.shape) < 0.1, blocks(), np.roll(truth, random.integers(-1, 2), axis=1))
    if ignored:
        truth[blocks() == 0] = 255
        truth[random.random(truth.shape) < 0.05] = 255
    return truth, found.astype(np.uint8)


def scores(images, **options):
    result = BoundaryScores(CLASSES, **options)
    for truth, found in images:
        result.update(torch.from_numpy(truth), torch.from_numpy(found))
    return result


def same(ours, expected):
    assert [value is None for value in ours] == [value is None for value in expected]
    assert [value or 0 for value in ours] == pytest.approx([value or 0 for value in expected], abs=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    ignored=st.booleans(),
    width=st.sampled_from([1e-4, 0.1, 0.2, 1.0]),
    tolerance=st.sampled_from([0.0, 0.05]),
)
def test_brute_force_agrees(seed, ignored, width, tolerance):
    random = np.random.default_rng(seed)
    images = [picture(random, ignored=ignored) for _ in range(2)]
    report = scores(images, width=width, tolerance=tolerance).report()
    expected_iou, expected_f = slow_iou(images, width), slow_f(images, tolerance)
    same(report.class_boundary_iou, expected_iou)
    same(report.class_boundary_f, expected_f)
    assert report.mean_boundary_iou == pytest.approx(np.mean([v for v in expected_iou if v is not None] or [0]))
    assert report.mean_boundary_f == pytest.approx(np.mean([v for v in expected_f if v is not None] or [0]))
    assert report.class_boundary_iou[CLASSES - 1] is report.class_boundary_f[CLASSES - 1] is None


@pytest.mark.parametrize("seed", range(4))
def test_the_steps_of_the_published_code_give_the_same_iou(seed):
    """Zero border, erosion by 3 x 3 pixels step by step, mask minus eroded; no pixel is ignored."""
    random = np.random.default_rng(seed)
    small = random.integers(0, CLASSES, (5, 7)).astype(np.uint8)
    truth = cv2.resize(small, (130, 90), interpolation=cv2.INTER_NEAREST)
    found = np.roll(truth, (2, 3), axis=(0, 1))
    steps = round(0.02 * math.hypot(90, 130))
    assert steps == 3

    def region(mask):
        eroded = np.pad(mask, 1)
        for _ in range(steps):
            grown = np.pad(eroded, 1)
            shifts = [grown[v : v + 92, u : u + 132] for v in range(3) for u in range(3)]
            eroded = np.logical_and.reduce(shifts)
        return mask & ~eroded[1:-1, 1:-1]

    for label, ours in enumerate(scores([(truth, found)]).report().class_boundary_iou):
        a, b = region(truth == label), region(found == label)
        assert ours == (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("seed", range(3))
def test_a_distance_map_gives_the_same_f_at_the_default_tolerance(seed):
    """OpenCV's exact distance transform, class by class, on an image of ADE20K's size."""
    random = np.random.default_rng(seed)
    truth = cv2.resize(random.integers(0, CLASSES, (6, 8)).astype(np.uint8), (683, 512), interpolation=0)
    shift = random.integers(-6, 7, 2)
    found = np.roll(truth, shift, axis=(0, 1))
    limit = 0.0075 * math.hypot(512, 683)

    def contour(mask):
        return mask & ~cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((3, 3)))[1:-1, 1:-1].astype(bool)

    for label, ours in enumerate(scores([(truth, found)]).report().class_boundary_f):
        a, b = contour(truth == label), contour(found == label)
        to_a, to_b = (cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 0) for edge in (a, b))
        precision, recall = (to_a[b] <= limit).mean(), (to_b[a] <= limit).mean()
        assert ours == pytest.approx(2 * precision * recall / (precision + recall))


def square(left):
    picture = np.zeros((20, 20), np.uint8)
    picture[5:15, left : left + 10] = 1
    return picture


def test_a_square_against_itself_is_one():
    report = scores([(square(5), square(5))]).report()
    assert report.class_boundary_iou == report.class_boundary_f == (1.0, 1.0, None, None, None)
    assert report.mean_boundary_iou == report.mean_boundary_f == 1.0
    assert (report.width, report.tolerance) == (0.02, 0.0075)


def test_a_shifted_square_by_hand():
    """Rings of 36 pixels that share 9 of the upper and 9 of the lower side."""
    images = [(square(5), square(6))]
    assert scores(images, width=1 / math.hypot(20, 20)).report().class_boundary_iou[1] == 18 / 54
    assert scores(images, tolerance=0.0).report().class_boundary_f[1] == 0.5
    assert scores(images, tolerance=0.99 / math.hypot(20, 20)).report().class_boundary_f[1] == 0.5
    assert scores(images, tolerance=1 / math.hypot(20, 20)).report().class_boundary_f[1] == 1.0


def test_a_distance_of_exactly_the_tolerance_matches_despite_rounding():
    diagonal = math.hypot(61, 68)
    assert 3 / diagonal * diagonal < 3  # in floats
    truth, found = np.zeros((2, 61, 68), np.uint8)
    truth[20, 30] = found[23, 30] = 1
    assert scores([(truth, found)], tolerance=3 / diagonal).report().class_boundary_f[1] == 1.0
    assert scores([(truth, found)], tolerance=2.99 / diagonal).report().class_boundary_f[1] == 0.0


def test_a_class_on_one_side_only_is_zero_in_its_image():
    images = [(square(5), np.zeros_like(square(5))), (square(5), square(5))]
    report = scores(images).report()
    assert report.class_boundary_f[1] == 0.5
    assert report.class_boundary_iou[1] == 0.5
    assert scores(images[:1]).report().class_boundary_f[1] == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ignored_pixels_are_no_business_of_the_prediction(seed):
    random = np.random.default_rng(seed)
    truth, found = picture(random)
    other = np.where(truth == 255, random.integers(0, 256, truth.shape), found).astype(np.uint8)
    options = {"width": 0.1, "tolerance": 0.05}
    assert scores([(truth, found)], **options).report() == scores([(truth, other)], **options).report()
    perfect = np.where(truth == 255, found, truth)
    report = scores([(truth, perfect)], **options).report()
    assert {*report.class_boundary_iou, *report.class_boundary_f} <= {1.0, None}
    swapped = np.where(truth == 255, truth, found), perfect
    there, back = (scores([pair], **options).report() for pair in ((truth, found), swapped))
    same(there.class_boundary_iou, back.class_boundary_iou)
    same(there.class_boundary_f, back.class_boundary_f)


def test_a_contour_in_or_beside_an_unlabelled_rim_is_right():
    """Pascal VOC's objects: a rim of 3 ignored pixels separates them from the background."""
    truth = np.zeros((60, 80), np.uint8)
    truth[15:45, 20:60] = 255
    truth[18:42, 23:57] = 1
    width, tolerance = 2 / 100, 2 / 100  # pixels, as the diagonal is 100
    for inset in (0, 1, 2, 3, 4):  # the last one is a pixel inside the object
        found = np.zeros_like(truth)
        found[15 + inset : 45 - inset, 20 + inset : 60 - inset] = 1
        report = scores([(truth, found)], width=width, tolerance=tolerance).report()
        assert report.class_boundary_f[1] == 1.0
        if inset < 4:
            assert report.class_boundary_iou[1] is None  # nothing to judge: no labelled other pixel is near
        else:  # two pixels wide, the outer one of which could be in the true region
            outer, inner = 22 * 32 - 20 * 30, 20 * 30 - 18 * 28
            assert report.class_boundary_iou[1] == outer / (outer + inner)
    far = np.zeros_like(truth)
    far[28:32, 36:44] = 1
    assert scores([(truth, far)], width=width, tolerance=tolerance).report().class_boundary_f[1] == 0.0


def test_an_object_that_is_missed_within_its_rim_is_no_perfect_score():
    truth = np.zeros((60, 80), np.uint8)
    truth[15:45, 20:60] = 255
    truth[18:42, 23:57] = 1
    assert scores([(truth, np.zeros_like(truth))]).report().class_boundary_f[1] == 0.0


def test_everything_ignored_and_nothing_at_all_are_zero_and_not_nan():
    ignored = np.full((9, 12), 255, np.uint8)
    for report in (scores([(ignored, ignored)]).report(), scores([]).report()):
        assert (report.mean_boundary_iou, report.mean_boundary_f) == (0.0, 0.0)
        assert report.class_boundary_iou == report.class_boundary_f == (None,) * CLASSES


def test_states_add_up_and_do_not_grow():
    random = np.random.default_rng(1)
    images = [picture(random) for _ in range(6)]
    whole, parts = scores(images), [scores(images[:2]), scores(images[2:])]
    parts[0].state = [mine + other for mine, other in zip(parts[0].state, parts[1].state, strict=True)]
    assert [(tensor.dtype, tensor.shape) for tensor in whole.state] == [
        (torch.int64, (3, CLASSES)),
        (torch.int64, (CLASSES,)),
    ]
    assert parts[0].report() == whole.report() == scores(images[::-1]).report()


def test_batches_and_other_types_are_the_same_images():
    random = np.random.default_rng(2)
    labels = torch.from_numpy(random.integers(0, CLASSES, (3, 8, 9)))
    predictions = torch.from_numpy(random.integers(0, CLASSES, (3, 8, 9))).int()
    one_by_one = BoundaryScores(CLASSES)
    for truth, found in zip(labels, predictions, strict=True):
        one_by_one.update(truth.to(torch.uint8), found.long())
    assert BoundaryScores(CLASSES).update(labels, predictions).report() == one_by_one.report()


def test_the_highest_id_of_a_byte_is_a_class_like_others():
    truth, found = square(5) + np.uint8(253), square(6) + np.uint8(253)
    result = BoundaryScores(255, width=0.05).update(torch.from_numpy(truth), torch.from_numpy(found)).report()
    plain = scores([(square(5), square(6))], width=0.05).report()
    assert result.class_boundary_iou[253:] == plain.class_boundary_iou[:2]
    assert result.class_boundary_f[253:] == plain.class_boundary_f[:2]


def test_the_report_is_json():
    report = scores([(square(5), square(6))]).report()
    tree = json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))
    assert tree["class_boundary_iou"] == list(report.class_boundary_iou)
    assert tree["width"] == 0.02


def test_mistakes_are_named():
    with pytest.raises(
        ConfigError, match=r"width, as a share of an image's diagonal, must be above 0 and at most 1, not 2"
    ):
        BoundaryScores(3, width=2)
    with pytest.raises(ConfigError, match=r"tolerance, as .* must be from 0 to 0\.05, not 0\.5"):
        BoundaryScores(3, tolerance=0.5)
    for label, prediction in ((3, 0), (0, 3), (0, 255)):
        with pytest.raises(AssertionError):
            BoundaryScores(3).update(torch.full((4, 4), label), torch.full((4, 4), prediction))
