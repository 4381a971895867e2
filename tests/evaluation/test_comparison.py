"""The interval of a difference against a slow loop, and against what it promises."""

import dataclasses

import numpy as np
import pytest

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.evaluation.comparison import compare_counts, compare_images, mean_ious, resampled_mean_ious
from resnest_seg.evaluation.image_scores import ImageScores, ImageScoresWriter, ImagesHeader


def drawn(random, images, quality, truth=None):
    """Counts of images in three classes, of which the last one is rare: IoU is about `quality`."""
    if truth is None:
        truth = random.integers(20, 400, (images, 3)) * (random.random((images, 3)) < (0.9, 0.8, 0.1))
    hits = random.binomial(truth, quality)
    return np.stack([hits, truth, hits + random.binomial(truth, (1 - quality) / 2)], axis=2)


def slow_mean_iou(counts, absent):
    ious = []
    for k in range(counts.shape[1]):
        hit, truth, predicted = (int(value) for value in counts[:, k].sum(0))
        union = truth + predicted - hit
        if union or absent == "zero":
            ious.append(hit / union if union else 0.0)
    return sum(ious) / len(ious) if ious else 0.0


@pytest.mark.parametrize("absent", ["skipped", "zero"])
@pytest.mark.parametrize("images", [3, 40])
def test_draws_equal_a_slow_loop(absent, images, monkeypatch):
    monkeypatch.setattr("resnest_seg.evaluation.comparison._DRAWS", 7 * images)  # so that chunks do not come out even
    counts = drawn(np.random.default_rng(3), images, 0.7)
    counts[:, 2] *= np.arange(images)[:, None] == 0  # some draws are without class 2
    random, slow = np.random.default_rng(5), []
    for _ in range(60):
        slow.append(slow_mean_iou(counts[random.integers(images, size=images)], absent))
    assert resampled_mean_ious(counts, absent=absent, resamples=60, seed=5) == pytest.approx(slow, rel=1e-14)


def test_the_same_model_is_no_better_than_itself():
    counts = drawn(np.random.default_rng(0), 30, 0.6)
    found = compare_counts(counts, counts.copy(), protocol="whole")
    assert (found.value, found.low, found.high, found.significant) == (0, 0, 0, False)
    assert str(found) == ("whole: no significant difference, +0.00 points of mIoU (95 %: +0.00 to +0.00, 1,000 "
                          "resamples of 30 images)")  # fmt: skip


def test_turning_the_models_round_turns_the_sign():
    random = np.random.default_rng(1)
    worse = drawn(random, 60, 0.6)
    better = drawn(random, 60, 0.8, truth=worse[:, :, 1])
    there, back = (compare_counts(*pair, protocol="whole") for pair in ((worse, better), (better, worse)))
    assert there.significant
    assert 0 < there.low < there.value < there.high
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low), abs=1e-12)
    half = 50 * (there.high - there.low)
    assert str(there).startswith(f"whole: better by {100 * there.value:.2f} +- {half:.2f} points of mIoU (95 %: ")
    assert str(back).startswith(f"whole: worse by {100 * there.value:.2f} +- {half:.2f} points of mIoU")


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    """Of 200 samples of a population whose difference is known, about 190 intervals hold it."""
    random = np.random.default_rng(2)
    before = drawn(random, 4000, 0.70)
    now = drawn(random, 4000, 0.71, truth=before[:, :, 1])
    truth = slow_mean_iou(now, "skipped") - slow_mean_iou(before, "skipped")
    hits = 0
    for _ in range(200):
        chosen = random.choice(4000, size=50)
        found = compare_counts(before[chosen], now[chosen], protocol="whole")
        hits += found.low <= truth <= found.high
    assert 180 <= hits <= 198


def test_means_follow_the_policy():
    counts = np.array([[3.0, 5, 4], [0, 0, 0]])
    assert mean_ious(counts, absent="skipped") == 0.5
    assert mean_ious(counts, absent="zero") == 0.25
    assert mean_ious(0 * counts, absent="skipped") == 0
    with pytest.raises(ConfigError, match="policy for absent classes"):
        mean_ious(counts, absent="zeros")


def test_one_image_tells_nothing():
    counts = np.array([[[3, 5, 4]]])
    found = compare_counts(counts, np.array([[[5, 5, 5]]]), protocol="whole")
    assert not found.significant
    assert str(found) == "whole: no interval from 1 image"


HEADER = ImagesHeader("tiny", "val", ("a", "b"), ("whole",))


def written(path, images, header=HEADER):
    with ImageScoresWriter(path) as writer:
        writer.begin(header)
        for index, name, counts in images:
            array = np.array([counts, (0, 0, 0)]).T
            writer.add([ImageScores.of_counts(array, index=index, name=name, protocol="whole", pixels=9, right=3)])
    return path


IMAGES = [(0, "x", (3, 5, 4)), (1, "y", (2, 9, 2)), (2, "z", (1, 4, 1))]


def test_images_are_paired_by_their_index(tmp_path):
    """In whatever order they come."""
    better = [(index, name, (hit + 1, truth, found + 1)) for index, name, (hit, truth, found) in IMAGES]
    one, two = written(tmp_path / "one", IMAGES), written(tmp_path / "two", better[::-1])
    found = compare_images(one, two, protocol="whole")
    assert found.images == 3
    assert found.value == pytest.approx(9 / 19 - 6 / 19)
    assert found == compare_counts(*([np.array([[c, (0, 0, 0)] for _, _, c in each]) for each in (IMAGES, better)]),
                                   protocol="whole")  # fmt: skip


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (IMAGES[:2], r"one \(3 images\) and .*two \(2\).* image 2, 'z' there and no such image here"),
        ([*IMAGES[:2], (2, "w", (1, 4, 1))], "image 2, 'z' there and 'w' here"),
        ([*IMAGES[:2], (2, "z", (1, 5, 1))], "labels of 1 images differ .* image 2, 'z'"),
        ([*IMAGES, IMAGES[0]], "image twice"),
    ],
)
def test_other_images_are_refused(tmp_path, images, what):
    with pytest.raises(DatasetError, match=what):
        compare_images(written(tmp_path / "one", IMAGES), written(tmp_path / "two", images), protocol="whole")


def test_other_classes_and_protocols_are_refused(tmp_path):
    one = written(tmp_path / "one", IMAGES)
    two = written(tmp_path / "two", IMAGES, dataclasses.replace(HEADER, classes=("a", "c")))
    with pytest.raises(DatasetError, match="different classes"):
        compare_images(one, two, protocol="whole")
    with pytest.raises(DatasetError, match=r"protocol in .*one: 'slide'"):
        compare_images(one, one, protocol="slide")
