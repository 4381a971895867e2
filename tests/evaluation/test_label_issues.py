"""Doubtful labels: the measures against cleanlab's, regions against scipy's and by hand."""

import numpy as np
import pytest
from scipy import ndimage

from resnest_seg.evaluation.label_issues import (
    LEVELS,
    ConfidentLearning,
    JudgedLabels,
    SoftMinimum,
    doubtful_regions,
    to_levels,
)


def judged_by(labels, probabilities):
    """The judged labels of an image; labels [H, W], probabilities [K, H, W]."""
    known = np.where(labels == 255, 0, labels)
    own = np.take_along_axis(probabilities, known[None].astype(int), 0)[0]
    levels = to_levels(own), to_levels(probabilities.max(axis=0))
    return JudgedLabels(labels.astype(np.uint8), probabilities.argmax(axis=0).astype(np.uint8), *levels)


def counted(images, classes, *, rows=7):
    """Confident learning over images (labels, probabilities), fed in slabs of rows."""
    learning = ConfidentLearning(classes)
    for labels, probabilities in images:
        for first in range(0, len(labels), rows):
            part, scores = labels[first : first + rows], probabilities[:, first : first + rows]
            known = part != 255
            given, scores = part[known].astype(int), scores[:, known]
            own = scores[given, np.arange(len(given))]
            learning.update(given, own, scores.argmax(axis=0), scores.max(axis=0))
    return learning


def noisy(seed, *, images=4, classes=5, size=(20, 30), absent=0):
    """Labels [N, H, W] and probabilities [N, K, H, W] that mostly agree; the last `absent` classes are never given."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes - absent, (images, *size))
    logits = 2 * random.normal(size=(images, classes, *size))
    for label in range(classes):
        logits[:, label] += 3 * (labels == label) * (random.random(labels.shape) < 0.9)
    shares = np.exp(logits)
    return labels, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("seed", "classes", "absent"), [(0, 5, 0), (1, 5, 1), (3, 2, 0), (5, 12, 3)])
def test_scores_and_issues_are_those_of_cleanlab(seed, classes, absent):
    pytest.importorskip("cleanlab", reason="cleanlab is not installed: pip install 'resnest-seg[dev]'")
    from cleanlab.segmentation.filter import find_label_issues
    from cleanlab.segmentation.rank import get_label_quality_scores

    labels, probabilities = noisy(seed, classes=classes, absent=absent)
    theirs = find_label_issues(labels, probabilities, verbose=False)
    scores, pixels = get_label_quality_scores(labels, probabilities, verbose=False)
    learning = counted(zip(labels, probabilities, strict=True), classes)
    ours = [judged_by(*pair) for pair in zip(labels, probabilities, strict=True)]
    assert theirs.any()
    np.testing.assert_array_equal(np.stack([one.issues(learning.cutoff) for one in ours]), theirs)
    for number, values in enumerate(pixels):
        soft = SoftMinimum()
        soft.update(values[:9])
        soft.update(values[9:])
        assert soft.value == pytest.approx(scores[number], rel=1e-12)
        np.testing.assert_allclose(ours[number].self_confidence / LEVELS, values, atol=0.5 / LEVELS)


def test_ignored_pixels_are_as_if_they_were_not_there():
    """cleanlab cannot ignore pixels: it is given images without them."""
    pytest.importorskip("cleanlab", reason="cleanlab is not installed: pip install 'resnest-seg[dev]'")
    from cleanlab.segmentation.filter import find_label_issues

    labels, probabilities = noisy(7)
    theirs = find_label_issues(labels[:, :, 4:], probabilities[:, :, :, 4:], verbose=False)
    labels[:, :, :4] = 255
    learning = counted(zip(labels, probabilities, strict=True), 5)
    ours = np.stack([judged_by(*pair).issues(learning.cutoff) for pair in zip(labels, probabilities, strict=True)])
    np.testing.assert_array_equal(ours[:, :, 4:], theirs)
    assert not ours[:, :, :4].any()


def test_sure_and_right_models_find_nothing():
    labels = np.arange(12).reshape(3, 4) % 3
    sure = (np.arange(3)[:, None, None] == labels).astype(np.float32)
    learning = counted([(labels, sure)], 3)
    assert (learning.confident, learning.cutoff) == (0, -1)
    assert not judged_by(labels, sure).issues(learning.cutoff).any()
    assert SoftMinimum().value is None
    seen = doubtful_regions(judged_by(labels, sure), learning.cutoff, min_area=1)
    assert (seen.regions, seen.small, seen.mask.any()) == ([], 0, False)


def test_regions_are_what_scipy_finds_class_pair_by_class_pair():
    labels, probabilities = noisy(11, images=1, classes=3, size=(40, 50))
    labels = ndimage.zoom(labels[0, :10, :10], (4, 5), order=0)
    one = judged_by(labels, probabilities[0])
    found, small, covered = doubtful_regions(one, LEVELS // 4, min_area=3)
    expected, left_out, pixels = set(), 0, np.zeros(labels.shape, bool)
    for given in range(3):
        for predicted in range(3):
            mask = (labels == given) & (one.predicted == predicted) & (given != predicted)
            parts, _ = ndimage.label(mask)
            for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
                here = parts == number
                if here.sum() < 3:
                    left_out += 1
                    continue
                pixels |= here
                box = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
                low = (one.self_confidence[here] <= LEVELS // 4).sum()
                means = [
                    round(float(values[here].mean()) / LEVELS, 9) for values in (one.confidence, one.self_confidence)
                ]
                expected.add((given, predicted, box, int(here.sum()), int(low), *means))
    assert len(expected) > 10
    assert {
        (*region[:5], round(region.confidence, 9), round(region.self_confidence, 9)) for region in found
    } == expected
    assert small == left_out
    np.testing.assert_array_equal(covered, pixels)


def test_the_width_of_a_region_is_that_of_its_largest_disc():
    probabilities = np.zeros((2, 30, 40), np.float32)
    probabilities[0] = 1
    for rows, columns in ((slice(2, 4), slice(2, 38)), (slice(10, 21), slice(5, 16))):
        probabilities[:, rows, columns] = np.float32([0, 1])[:, None, None]
    found, *_ = doubtful_regions(judged_by(np.zeros((30, 40), int), probabilities), LEVELS, min_area=1)
    thin, square = sorted(found, key=lambda region: region.width)
    assert (thin.box, square.box) == ((2, 2, 36, 2), (5, 10, 11, 11))
    assert thin.width == pytest.approx(1, abs=0.2)
    assert square.width == pytest.approx(11, abs=1)
