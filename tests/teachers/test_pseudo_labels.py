"""The pixel rules of pseudo-labels and CutMix, against plain forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnest_seg.labels import MULTILABEL_IGNORE
from resnest_seg.teachers.pseudo_labelling import Box, draw_box, inside, predict, predict_bits, pseudo_labels


@pytest.mark.parametrize("size", [(321, 321), (60, 200), (5, 3)])
def test_boxes_lie_inside_and_have_unimatchs_sizes(size):
    random = np.random.default_rng(0)
    boxes = np.array([draw_box(size, random) for _ in range(2000)])
    assert (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= size[0]).all()
    assert (boxes[:, 1] + boxes[:, 3] <= size[1]).all()
    if min(size) > 50:
        area = boxes[:, 2] * boxes[:, 3] / (size[0] * size[1])
        aspect = (boxes[:, 2] / size[0]) / (boxes[:, 3] / size[1])
        assert 0.017 < area.min() < 0.03
        assert 0.35 < area.max() <= 0.4
        assert 0.25 < aspect.min() < 0.4
        assert 2.2 < aspect.max() < 3.6
        assert boxes[:, 0].min() == boxes[:, 1].min() == 0


def test_a_box_is_drawn_by_the_random_state_alone():
    assert draw_box((64, 48), np.random.default_rng(5)) == draw_box((64, 48), np.random.default_rng(5))
    assert draw_box((64, 48), np.random.default_rng(5)) != draw_box((64, 48), np.random.default_rng(6))


def test_the_pixels_of_boxes_are_those_of_slices():
    boxes = [Box(0, 0, 0, 0), Box(1, 2, 3, 4), Box(0, 0, 6, 9), Box(5, 8, 1, 1)]
    found = inside(torch.tensor(boxes), (6, 9)).numpy()
    for mask, (top, left, height, width) in zip(found, boxes, strict=True):
        plain = np.zeros((6, 9), bool)
        plain[top : top + height, left : left + width] = True
        assert (mask == plain).all()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("held", [1, 200, 1 << 20])
def test_predictions_are_those_of_a_softmax_at_full_size(align_corners, held):
    logits = 4 * torch.randn(2, 11, 5, 7, generator=torch.Generator().manual_seed(1))
    labels, certain = predict(logits, (17, 20), align_corners=align_corners, held=held)
    plain = F.interpolate(logits, (17, 20), mode="bilinear", align_corners=align_corners).softmax(dim=1)
    assert (labels.long() == plain.argmax(dim=1)).all()
    torch.testing.assert_close(certain, plain.amax(dim=1))
    assert (labels.dtype, certain.dtype) == (torch.uint8, torch.float32)


def test_of_equal_classes_the_first_is_predicted():
    labels, certain = predict(torch.ones(1, 4, 2, 2), (2, 2), align_corners=False, held=1)
    assert (labels == 0).all()
    torch.testing.assert_close(certain, torch.full((1, 2, 2), 0.25))


def test_half_precision_is_computed_in_single():
    logits = (20 * torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))).bfloat16()
    labels, certain = predict(logits, (9, 9), align_corners=True)
    again = predict(logits.float(), (9, 9), align_corners=True)
    assert torch.equal(labels, again[0])
    assert torch.equal(certain, again[1])


@pytest.mark.parametrize("classes", [1, 3])
def test_bits_are_those_of_each_label_alone(classes):
    logits = 3 * torch.randn(2, classes, 5, 4, generator=torch.Generator().manual_seed(2))
    bits, certain = predict_bits(logits, (10, 9), align_corners=False)
    probability = torch.sigmoid(F.interpolate(logits, (10, 9), mode="bilinear", align_corners=False)).numpy()
    for label in range(classes):
        assert ((bits.numpy() >> label & 1) == (probability[:, label] >= 0.5)).all()
    np.testing.assert_allclose(certain.numpy(), np.maximum(probability, 1 - probability).min(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("task", "ignore"), [("multiclass", 255), ("binary", 255), ("multilabel", MULTILABEL_IGNORE)])
def test_only_certain_pixels_outside_the_padding_have_a_label(task, ignore):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(2, 1 if task == "binary" else 4, 6, 6, generator=generator)
    valid = torch.rand(2, 12, 12, generator=generator) < 0.8
    found = pseudo_labels(logits, valid, threshold=0.8, align_corners=False, task=task)
    whole = F.interpolate(logits, (12, 12), mode="bilinear", align_corners=False).numpy().astype(np.float64)
    plain = np.full((2, 12, 12), ignore)
    for n, y, x in np.ndindex(plain.shape):
        scores = whole[n, :, y, x]
        if task == "multiclass":
            probabilities = np.exp(scores) / np.exp(scores).sum()
            certain, label = probabilities.max(), probabilities.argmax()
        else:
            probabilities = 1 / (1 + np.exp(-scores))
            certain = np.maximum(probabilities, 1 - probabilities).min()
            label = sum(1 << k for k, one in enumerate(probabilities) if one >= 0.5)
        if valid[n, y, x] and certain >= 0.8:
            plain[n, y, x] = label
    assert (found.numpy() == plain).all()
    assert 0 < (plain != ignore).mean() < 0.9
    assert found.dtype == (torch.int32 if task == "multilabel" else torch.uint8)


def test_a_threshold_of_zero_labels_every_valid_pixel():
    valid = torch.tensor([[[True, False], [True, True]]])
    found = pseudo_labels(torch.randn(1, 3, 2, 2), valid, threshold=0.0, align_corners=True)
    assert ((found != 255) == valid).all()
