"""Scores of binary and multi-label tasks against plain counts, torchmetrics and laws."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.evaluation.label_scores import ScoreHistogram, unpack_labels
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE, bits_to_labels, labels_to_bits


def draw(seed, *, labels=3, size=(20, 30), bins=None, ignored=0.2):
    """Scores that know something about the labels, and ignored pixels."""
    random = np.random.default_rng(seed)
    present = random.random((labels, *size)) < np.linspace(0.05, 0.6, labels)[:, None, None]
    scores = np.clip(random.normal(0.35 + 0.3 * present, 0.2), 0, 1).astype(np.float32)
    if bins:
        scores = (np.round(scores * bins) / bins).astype(np.float32)
    return scores, present, random.random(size) >= ignored


def counts_at(scores, present, valid, threshold):
    """Hits, false and missed pixels of a label, in the obvious way."""
    found = scores >= np.float32(threshold)
    return tuple(int((mask & valid).sum()) for mask in (found & present, found & ~present, ~found & present))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    bins=st.sampled_from([1, 7, 10, 1000]),
    dtype=st.sampled_from([np.float32, np.float16, np.float64]),
    on_edges=st.booleans(),
)
def test_counts_at_every_threshold_are_those_of_greater_or_equal(seed, bins, dtype, on_edges):
    scores, present, valid = draw(seed, labels=2, size=(9, 11), bins=bins if on_edges else None)
    scores = scores.astype(dtype)
    histogram = ScoreHistogram(2, bins=bins).update(scores, present, valid)
    assert histogram.counts.dtype == torch.int64
    assert histogram.counts.shape == (2, 2, bins + 2)
    for step in {0, 1, bins // 3, bins // 2, bins - 1, bins}:
        threshold = step / bins
        result = histogram.scores(threshold)
        pooled = np.zeros(3, int)
        for label in range(2):
            hits, false, missed = counts_at(scores[label].astype(np.float32), present[label], valid, threshold)
            pooled += (hits, false, missed)
            assert int(histogram.counts[1, label, step:-1].sum()) == hits
            assert int(histogram.counts[0, label, step:-1].sum()) == false
            score = result.labels[label]
            union = hits + false + missed
            assert score.threshold == threshold
            assert score.iou == (hits / union if union else None)
            assert score.f1 == (pytest.approx(2 * hits / (2 * hits + false + missed)) if union else None)
            assert score.recall == (hits / (hits + missed) if hits + missed else None)
            assert score.precision == (hits / max(hits + false, 1) if union else None)
            assert score.share == (hits + missed) / max(valid.sum(), 1)
        assert result.micro.iou == (pooled[0] / pooled.sum() if pooled.sum() else None)


def test_a_threshold_is_reached_by_a_score_equal_to_it():
    """0.3 as float32 is above 0.3: the comparison is the one that a person writes."""
    scores = torch.tensor([[[0.3, 0.7, 0.299999, 1.0, 0.0]]])
    assert (scores >= 0.3).sum() == 3
    histogram = ScoreHistogram(1).update(scores, torch.ones(1, 1, 5, dtype=torch.bool), torch.ones(1, 5).bool())
    for threshold in (0.3, 0.7, 1.0, 0.0, 0.301, 0.999):
        assert histogram.scores(threshold).labels[0].recall == float((scores >= threshold).sum()) / 5


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_agrees_at_a_threshold(seed):
    """Theirs is `>`: scores between edges make both the same."""
    scores, present, valid = draw(seed)
    scores = np.clip(scores + np.float32(1e-5), 0, 1)
    result = ScoreHistogram(3).update(scores, present, valid).scores(0.4)
    kept, truth = torch.from_numpy(scores[:, valid].T.copy()), torch.from_numpy(present[:, valid].T.astype(int))
    for label in range(3):
        pair, score = (kept[:, label], truth[:, label]), result.labels[label]
        assert score.iou == pytest.approx(float(binary_jaccard_index(*pair, threshold=0.4)), abs=1e-6)
        assert score.f1 == pytest.approx(float(binary_f1_score(*pair, threshold=0.4)), abs=1e-6)
        assert score.precision == pytest.approx(float(binary_precision(*pair, threshold=0.4)), abs=1e-6)
        assert score.recall == pytest.approx(float(binary_recall(*pair, threshold=0.4)), abs=1e-6)
    for average, values in (
        ("macro", (result.mean_f1, result.mean_precision, result.mean_recall)),
        ("micro", (result.micro.f1, result.micro.precision, result.micro.recall)),
    ):
        for measure, value in zip((multilabel_f1_score, multilabel_precision, multilabel_recall), values, strict=True):
            assert value == pytest.approx(float(measure(kept, truth, 3, threshold=0.4, average=average)), abs=1e-6)


@pytest.mark.parametrize("bins", [10, 1000])
def test_average_precision_is_torchmetrics_at_the_same_thresholds(bins):
    scores, present, valid = draw(4)
    result = ScoreHistogram(3, bins=bins).update(scores, present, valid).scores()
    kept, truth = torch.from_numpy(scores[:, valid].T.copy()), torch.from_numpy(present[:, valid].T.astype(int))
    edges = torch.arange(bins + 1, dtype=torch.float64).div(bins).float()
    theirs = multilabel_average_precision(kept, truth, 3, average="none", thresholds=edges)
    assert [score.average_precision for score in result.labels] == pytest.approx(theirs.tolist(), abs=1e-6)
    assert result.mean_average_precision == pytest.approx(float(theirs.mean()), abs=1e-6)
    pooled = binary_average_precision(kept.flatten(), truth.flatten(), thresholds=edges)
    assert result.micro.average_precision == pytest.approx(float(pooled), abs=1e-6)


def test_average_precision_is_the_exact_one_for_scores_at_thresholds_and_near_it_else():
    for bins, tolerance in ((1000, 1e-6), (None, 5e-3)):
        scores, present, valid = draw(5, size=(60, 80), bins=bins)
        result = ScoreHistogram(3).update(scores, present, valid).scores()
        for label, score in enumerate(result.labels):
            pair = torch.from_numpy(scores[label][valid]), torch.from_numpy(present[label][valid].astype(int))
            exact = float(binary_average_precision(*pair, thresholds=None))
            assert score.average_precision == pytest.approx(exact, abs=tolerance)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), bins=st.sampled_from([5, 20]))
def test_the_best_threshold_is_the_one_that_a_search_finds(seed, bins):
    scores, present, valid = draw(seed, size=(8, 9), bins=bins)
    histogram = ScoreHistogram(3, bins=bins).update(scores, present, valid)
    sweep = [histogram.scores(step / bins) for step in range(bins + 1)]
    for label, score in enumerate(sweep[0].labels):
        if score.best_threshold is None:
            assert not (present[label] & valid).any()
            continue
        ious, f1s = ([getattr(at.labels[label], key) for at in sweep] for key in ("iou", "f1"))
        assert score.best_iou == max(ious) == ious[round(score.best_threshold * bins)]
        assert f1s[round(score.best_threshold * bins)] == max(f1s)
        equals = [step for step in range(bins + 1) if ious[step] == max(ious)]
        assert abs(score.best_threshold - 0.5) == pytest.approx(min(abs(step / bins - 0.5) for step in equals))
    pooled = [at.micro.iou for at in sweep]
    assert sweep[0].micro.best_iou == max(pooled)


def test_of_equal_thresholds_the_best_is_nearest_to_a_half():
    scores, valid = np.array([[[0.1, 0.9, 0.9]]], np.float32), np.ones((1, 3), bool)
    histogram = ScoreHistogram(1).update(scores, scores > 0.5, valid)
    assert histogram.scores(0.05).best_thresholds == (0.5,)
    assert histogram.scores(0.05).labels[0].best_iou == 1


def test_each_label_has_its_own_threshold():
    scores, present, valid = draw(6)
    histogram = ScoreHistogram(3).update(scores, present, valid)
    best = histogram.scores().best_thresholds
    assert len(set(best)) > 1
    result = histogram.scores(best)
    assert [score.iou for score in result.labels] == [score.best_iou for score in result.labels]
    pooled = np.sum([counts_at(scores[k], present[k], valid, best[k]) for k in range(3)], axis=0)
    assert result.micro.iou == pooled[0] / pooled.sum()
    assert result.micro.threshold == pytest.approx(np.mean(best))


def test_parts_in_any_order_give_the_same_histogram():
    """Blocks of an image, and the sum over processes."""
    scores, present, valid = draw(7)
    whole = ScoreHistogram(3).update(scores, present, valid).count_image(present, valid)
    parts = [ScoreHistogram(3), ScoreHistogram(3)]
    for top in (15, 0, 10, 5):
        rows = slice(top, top + 5)
        parts[top % 2].update(scores[:, rows], present[:, rows], valid[rows])
    parts[0].count_image(present, valid)
    parts[0].state = [a + b for a, b in zip(parts[0].state, parts[1].state, strict=True)]
    assert torch.equal(parts[0].counts, whole.counts)
    assert parts[0].scores() == whole.scores()


def test_images_without_a_label_are_counted():
    histogram = ScoreHistogram(2)
    valid = np.ones((2, 2), bool)
    for present in ([1, 0], [0, 0], [1, 1]):
        planes = np.zeros((2, 2, 2), bool)
        planes[:, 0, 0] = present
        histogram.count_image(planes, valid)
    ignored = valid.copy()
    ignored[0, 0] = False
    histogram.count_image(np.array([planes[0], planes[0]]), ignored)  # the only labelled pixel is ignored
    histogram.count_image(np.ones((2, 2, 2), bool), ~valid)  # nothing is known of this one
    result = histogram.scores()
    assert (result.images, result.images_without) == (4, (2, 3))
    assert result.labels[0].share == 0  # no pixel was counted


def test_absent_labels():
    """The two policies, and what is undefined; label 0 is right, 1 absent from both, 2 predicted only, 3 missed."""
    present, scores = np.zeros((4, 1, 4), bool), np.zeros((4, 1, 4), np.float32)
    present[0] = present[3] = [True, True, False, False]
    scores[0] = [0.9, 0.9, 0.1, 0.1]
    scores[2] = 0.6
    result = ScoreHistogram(4).update(scores, present, np.ones((1, 4), bool)).scores()
    assert [score.iou for score in result.labels] == [1, None, 0, 0]
    assert [score.f1 for score in result.labels] == [1, None, 0, 0]
    assert [score.precision for score in result.labels] == [1, None, 0, 0]
    assert [score.recall for score in result.labels] == [1, None, None, 0]
    assert [score.average_precision for score in result.labels] == [1, None, None, 0.5]
    assert [score.best_threshold for score in result.labels] == [0.5, None, None, 0]
    assert result.best_thresholds == (0.5, 0.5, 0.5, 0)
    assert [score.share for score in result.labels] == [0.5, 0, 0, 0.5]
    assert result.mean_iou == result.mean_iou_by("skipped") == pytest.approx(1 / 3)
    assert result.mean_iou_absent_zero == result.mean_iou_by("zero") == pytest.approx(1 / 4)
    assert result.mean_recall == pytest.approx(1 / 2)
    assert result.micro.iou == pytest.approx(2 / (2 + 4 + 2))
    with pytest.raises(ConfigError, match=r"Did you mean 'skipped'"):
        result.mean_iou_by("skiped")


def test_without_pixels_nothing_is_nan_and_scores_are_json():
    for histogram in (ScoreHistogram(2), ScoreHistogram(2).update(*draw(1, labels=2)[:2], np.zeros((20, 30), bool))):
        result = histogram.scores()
        assert (result.mean_iou, result.mean_f1, result.mean_average_precision, result.images) == (0, 0, 0, 0)
        assert result.micro.iou is None
        assert "labels" in json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))


def test_ignored_pixels_may_hold_anything():
    scores, present, valid = draw(8)
    plain = ScoreHistogram(3).update(scores, present, valid)
    broken, other = scores.copy(), present ^ ~valid
    broken[:, ~valid] = np.nan
    assert torch.equal(ScoreHistogram(3).update(broken, other, valid).counts, plain.counts)


def test_scores_outside_by_rounding_are_clamped():
    scores, present = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 1, 4), np.ones((3, 1, 4), bool)
    beyond = np.where(scores == 0, -1e-6, np.where(scores == 1, 1 + 1e-6, scores))
    both = [ScoreHistogram(3).update(values, present, present[0]).counts for values in (scores, beyond)]
    assert torch.equal(*both)
    assert both[0][1, 0, 0] == both[0][1, 2, 1000] == 1


def test_arrays_of_any_layout_and_read_only_ones():
    scores, present, valid = draw(8)
    plain = ScoreHistogram(3).update(scores, present, valid).count_image(present, valid)
    swapped = [np.ascontiguousarray(values[..., ::-1])[..., ::-1] for values in (scores.astype(">f4"), present, valid)]
    for values in swapped:
        values.setflags(write=False)
    other = ScoreHistogram(3).update(*swapped).count_image(*swapped[1:])
    assert torch.equal(other.counts, plain.counts)


def test_scores_of_any_memory_format():
    """A network's are often channels-last; torch would warn."""
    scores, present, valid = (torch.from_numpy(values) for values in draw(8))
    plain = ScoreHistogram(3).update(scores, present, valid)
    other = scores.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not other.is_contiguous()
    assert torch.equal(ScoreHistogram(3).update(other, present, valid).counts, plain.counts)


def test_labels_are_unpacked():
    bits = torch.tensor([[5, MULTILABEL_IGNORE, 0, 2]], dtype=torch.int32).to(torch.uint16)
    present, valid = unpack_labels(bits, 3, ignore_label=MULTILABEL_IGNORE)
    assert present.int().tolist() == [[[1, 0, 0, 0]], [[0, 0, 0, 1]], [[1, 0, 0, 0]]]
    assert valid.tolist() == [[True, False, True, True]]
    binary = unpack_labels(torch.tensor([[0, 1, 255]], dtype=torch.uint8), 1, ignore_label=IGNORE_LABEL)
    assert binary.present.int().tolist() == [[[0, 1, 0]]]
    assert binary.valid.tolist() == [[True, True, False]]
    _, present, valid = draw(9, labels=15)
    bits = labels_to_bits(present, valid)
    both = bits_to_labels(bits, 15), unpack_labels(torch.from_numpy(bits)[None], 15, ignore_label=MULTILABEL_IGNORE)
    assert np.array_equal(both[0].present, both[1].present[0].numpy())
    assert np.array_equal(both[0].valid, both[1].valid[0].numpy())


def test_mistakes():
    scores, present, valid = draw(0)
    histogram = ScoreHistogram(3)
    before = histogram.counts.clone()
    with pytest.raises(
        ConfigError, match=r"3 labels takes .* not scores \[2, 20, 30\], present \[3, 20, 30\] and valid"
    ):
        histogram.update(scores[:2], present, valid)
    with pytest.raises(ConfigError, match=r"not present \[2, 20, 30\] and valid \[20, 30\]"):
        histogram.count_image(present[:2], valid)
    with pytest.raises(ConfigError, match=r"must be bool, not torch.int64 and torch.bool"):
        histogram.update(scores, present.astype(int), valid)
    with pytest.raises(ConfigError, match=r"float numbers, not torch.int64"):
        histogram.update(scores.astype(int), present, valid)
    with pytest.raises(ConfigError, match=r"they lie in -4.*\.\.5.*: give sigmoid\(logits\)"):
        histogram.update(scores * 9 - 4, present, valid)
    with pytest.raises(CheckpointError, match="not numbers"):
        histogram.update(np.where(scores == scores.max(), np.nan, scores), present, np.ones_like(valid))
    assert torch.equal(histogram.counts, before)
    with pytest.raises(ConfigError, match=r"multiple of 1/1000, .* not 0.12345: the nearest is 0.123"):
        histogram.scores(0.12345)
    with pytest.raises(ConfigError, match=r"from 0 to 1, not 1.5"):
        histogram.scores(1.5)
    with pytest.raises(ConfigError, match="3 labels and 2 thresholds"):
        histogram.scores([0.5, 0.5])
    with pytest.raises(ConfigError, match="num_labels must be from 1 to 255, not 0"):
        ScoreHistogram(0)
