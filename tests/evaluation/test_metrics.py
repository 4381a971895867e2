"""Metrics against a triple loop and against torchmetrics."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_jaccard_index

from resnest_seg.errors import ConfigError
from resnest_seg.evaluation import metrics
from resnest_seg.evaluation.metrics import Confusion, ConfusionMatrix


def loop(labels, predictions, classes):
    counts = np.zeros((classes, classes), np.int64)
    for label, prediction in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if label != 255:
            counts[label, prediction] += 1
    return counts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [1, 3, 11])
def test_counts_and_means_equal_a_loop(seed, classes):
    random = np.random.default_rng(seed)
    matrix, counts = ConfusionMatrix(classes), np.zeros((classes, classes), np.int64)
    for _ in range(3):
        labels = random.integers(0, classes, (2, 7, 9)).astype(np.uint8)
        labels[random.random(labels.shape) < 0.2] = 255
        labels[labels == classes - 1] = 0 if classes > 2 else labels[labels == classes - 1]  # an absent class
        predictions = random.integers(0, max(classes - 1, 1), (2, 7, 9))
        matrix.update(torch.from_numpy(labels), torch.from_numpy(predictions))
        counts += loop(labels, predictions, classes)
    assert matrix.counts.dtype == torch.int64
    assert np.array_equal(matrix.counts.numpy(), counts)
    scores = matrix.scores()
    ious, accuracies = [], []
    for k in range(classes):
        union = counts[k].sum() + counts[:, k].sum() - counts[k, k]
        assert scores.class_iou[k] == (counts[k, k] / union if union else None)
        ious += [counts[k, k] / union] if union else []
        accuracies += [counts[k, k] / counts[k].sum()] if counts[k].sum() else []
        assert scores.class_share[k] == counts[k].sum() / counts.sum()
    assert scores.mean_iou == pytest.approx(np.mean(ious))
    assert scores.mean_iou_absent_zero == pytest.approx(np.sum(ious) / classes)
    assert scores.mean_accuracy == pytest.approx(np.mean(accuracies))
    assert scores.pixel_accuracy == np.trace(counts) / counts.sum()
    weighted = [counts[k].sum() / counts.sum() * (scores.class_iou[k] or 0) for k in range(classes)]
    assert scores.frequency_weighted_iou == pytest.approx(np.sum(weighted))


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_agrees(seed):
    torch.manual_seed(seed)
    labels, predictions = torch.randint(0, 6, (3, 20, 30)), torch.randint(0, 6, (3, 20, 30))
    labels[torch.rand(labels.shape) < 0.3] = 255
    scores = ConfusionMatrix(6).update(labels, predictions).scores()
    iou = multiclass_jaccard_index(predictions, labels, 6, average="none", ignore_index=255)
    accuracy = multiclass_accuracy(predictions, labels, 6, average="micro", ignore_index=255)
    assert scores.class_iou == pytest.approx(iou.tolist(), abs=1e-6)
    assert scores.mean_iou == pytest.approx(iou.mean().item(), abs=1e-6)
    assert scores.pixel_accuracy == pytest.approx(accuracy.item(), abs=1e-6)
    weighted = multiclass_jaccard_index(predictions, labels, 6, average="weighted", ignore_index=255)
    dice = multiclass_f1_score(predictions, labels, 6, average="none", ignore_index=255)  # the same thing of pixels
    assert scores.frequency_weighted_iou == pytest.approx(weighted.item(), abs=1e-6)
    assert scores.class_dice == pytest.approx(dice.tolist(), abs=1e-6)
    assert scores.mean_dice == pytest.approx(dice.mean().item(), abs=1e-6)


def test_everything_ignored_is_zero_and_not_nan():
    scores = ConfusionMatrix(3).update(torch.full((4, 4), 255), torch.zeros(4, 4, dtype=torch.long)).scores()
    assert (scores.mean_iou, scores.mean_iou_absent_zero, scores.pixel_accuracy, scores.mean_accuracy) == (0, 0, 0, 0)
    assert scores.class_iou == scores.class_dice == (None, None, None)
    assert (scores.mean_dice, scores.frequency_weighted_iou) == (0, 0)


def test_a_perfect_prediction_is_one_whatever_is_ignored():
    labels = torch.randint(0, 4, (10, 10))
    shown = labels.clone()
    labels[:3] = 255
    scores = ConfusionMatrix(4).update(labels, shown).scores()
    assert scores.mean_iou == scores.pixel_accuracy == 1.0


def test_the_two_policies_for_absent_classes_differ_by_the_number_of_classes():
    scores = ConfusionMatrix(4).update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])).scores()
    assert scores.mean_iou == 1.0
    assert scores.mean_iou_absent_zero == 0.5


def test_policies_have_names():
    scores = ConfusionMatrix(4).update(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])).scores()
    assert scores.mean_iou_by("skipped") == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores.mean_iou_by("zero") == pytest.approx((1 / 2 + 1 + 0 + 0) / 4)
    assert scores.mean_dice == pytest.approx((2 / 3 + 1 + 0) / 3)
    with pytest.raises(ConfigError, match=r"'skiped'.*Did you mean 'skipped'.*zero"):
        scores.mean_iou_by("skiped")


def test_scores_and_pairs_are_json():
    matrix = ConfusionMatrix(3).update(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    for value in (matrix.scores(), *matrix.pairs()):
        text = json.dumps(dataclasses.asdict(value), allow_nan=False)
        assert json.loads(text).keys() == {field.name for field in dataclasses.fields(value)}


def test_pairs_by_hand():
    matrix = ConfusionMatrix(3)
    matrix.counts = torch.tensor([[90, 4, 6], [6, 10, 0], [1, 4, 0]])
    assert matrix.pairs() == (
        Confusion(0, 2, 6, 0.06),
        Confusion(1, 0, 6, 6 / 16),
        Confusion(0, 1, 4, 0.04),
        Confusion(2, 1, 4, 0.8),
        Confusion(2, 0, 1, 0.2),
    )
    assert matrix.pairs(limit=2) == matrix.pairs()[:2]
    assert matrix.pairs(limit=0) == ConfusionMatrix(3).pairs() == ()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_pairs_are_a_sorted_list_of_all_mistakes(seed, classes):
    matrix = ConfusionMatrix(classes)
    matrix.counts = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (classes, classes)))
    counts = matrix.counts.tolist()
    cells = [(a, b, counts[a][b]) for a in range(classes) for b in range(classes) if a != b and counts[a][b]]
    cells.sort(key=lambda cell: (-cell[2], cell[0], cell[1]))
    found = [(pair.label, pair.prediction, pair.pixels) for pair in matrix.pairs(limit=100)]
    assert found == cells
    assert all(pair.share == pair.pixels / sum(counts[pair.label]) for pair in matrix.pairs(limit=100))


TYPES = [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.sampled_from([1, 2, 19, 150, 255]),
    types=st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)),
    piece=st.sampled_from([7, 64, 2**24]),
    strided=st.booleans(),
)
def test_both_ways_to_count_equal_a_loop_for_every_type(seed, classes, types, piece, strided):
    """The bincount is what other devices than the CPU run; pieces are what a huge image is cut into."""
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(0, classes, (2, 12, 14))
    labels[random.random(labels.shape) < 0.3] = 255
    predictions[(labels == 255) & (random.random(labels.shape) < 0.5)] = 255  # whatever is predicted there
    expected = loop(labels, predictions, classes)
    labels, predictions = torch.from_numpy(labels).to(types[0]), torch.from_numpy(predictions).to(types[1])
    if strided:
        labels, predictions = labels.T, predictions.T
    before = labels.clone(), predictions.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_EXACT", piece)
        on_cpu = ConfusionMatrix(classes).update(labels, predictions).counts
    elsewhere, strangers = metrics._count_by_bincount(labels.flatten(), predictions.flatten(), classes)
    assert np.array_equal(on_cpu.numpy(), expected)
    assert np.array_equal(elsewhere.numpy(), expected)
    assert on_cpu.dtype == elsewhere.dtype == torch.int64
    assert not strangers
    assert torch.equal(labels, before[0])
    assert torch.equal(predictions, before[1])


def test_counts_beyond_the_whole_numbers_of_float32_are_exact():
    pixels = 2**24 + 2**20 + 1
    labels = torch.zeros(pixels, dtype=torch.uint8)
    assert ConfusionMatrix(2).update(labels, labels).update(labels, labels).counts.tolist() == [[2 * pixels, 0], [0, 0]]


def test_the_state_is_what_is_summed_over_processes():
    labels, predictions = torch.randint(0, 4, (2, 6, 10, 10))
    parts = [ConfusionMatrix(4).update(labels[part], predictions[part]) for part in (slice(0, 2), slice(2, 6))]
    whole = ConfusionMatrix(4).update(labels, predictions)
    parts[0].state = [mine + other for mine, other in zip(parts[0].state, parts[1].state, strict=True)]
    assert parts[0].scores() == whole.scores()
    assert ConfusionMatrix(2).update(labels[:0], predictions[:0]).scores().mean_iou == 0


@pytest.mark.parametrize(("label", "prediction"), [(3, 0), (254, 0), (0, 3), (0, 255), (256, 0), (0, 300), (-1, 0)])
def test_an_id_that_is_no_class_is_refused_and_counts_nothing(label, prediction):
    matrix = ConfusionMatrix(3)
    says = "0..2 or be 255" if {label, prediction} <= {*range(256)} else f"0..255, .* not {label or prediction}"
    with pytest.raises(ConfigError, match=says):
        matrix.update(torch.tensor([label, 1]), torch.tensor([prediction, 1]))
    assert not matrix.counts.any()
    if label in range(256) and prediction in range(256):
        strangers = metrics._count_by_bincount(torch.tensor([label, 1]), torch.tensor([prediction, 1]), 3)[1]
        assert strangers == 1


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", ">u2", "int32", "uint32", "int64", "uint64"])
def test_arrays_of_every_integer_type_count_like_tensors(kind):
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 5, (2, 3, 8, 9))
    expected = loop(labels, predictions, 5)
    typed = labels.astype(kind), predictions.astype(kind)
    assert np.array_equal(ConfusionMatrix(5).update(*typed).counts, expected)
    assert np.array_equal(ConfusionMatrix(5).update(typed[0], torch.from_numpy(predictions)).counts, expected)
    flipped = [ids[:, ::-1] for ids in typed]  # strides that torch does not have
    assert np.array_equal(ConfusionMatrix(5).update(*flipped).counts, expected)


@pytest.mark.parametrize(
    ("labels", "predictions", "says"),
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), r"one shape, not \[4, 5\] and \[5, 4\]"),
        (np.zeros((2, 4, 5), int), np.zeros((2, 3, 4, 5), int), r"scores.argmax\(1\)"),
        (np.zeros(3), np.zeros(3, int), "labels must be whole numbers .*, not float64"),
        (torch.zeros(3, dtype=torch.long), torch.rand(3), "predictions must be whole numbers .*, not float32"),
        ([0, 1], [0, 1], "labels must be a tensor or a NumPy array of class ids, not list"),
        (np.full(3, 2**64 - 1, np.uint64), np.zeros(3, int), "labels must lie in 0..255"),
    ],
)
def test_what_cannot_be_counted(labels, predictions, says):
    with pytest.raises(ConfigError, match=says):
        ConfusionMatrix(3).update(labels, predictions)


@pytest.mark.parametrize("count", [0, 256])
def test_no_more_classes_than_bytes(count):
    with pytest.raises(ConfigError, match=f"num_classes must be from 1 to 255, not {count}"):
        ConfusionMatrix(count)
