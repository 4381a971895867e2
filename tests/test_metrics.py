"""Metrics against a triple loop and against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from resnest_seg.metrics import ConfusionMatrix


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


def test_everything_ignored_is_zero_and_not_nan():
    scores = ConfusionMatrix(3).update(torch.full((4, 4), 255), torch.zeros(4, 4, dtype=torch.long)).scores()
    assert (scores.mean_iou, scores.mean_iou_absent_zero, scores.pixel_accuracy, scores.mean_accuracy) == (0, 0, 0, 0)
    assert scores.class_iou == (None, None, None)


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


def test_a_label_that_is_no_class_is_our_mistake():
    with pytest.raises(AssertionError):
        ConfusionMatrix(3).update(torch.tensor([3]), torch.tensor([0]))
