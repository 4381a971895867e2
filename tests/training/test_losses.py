"""The losses against their definitions."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from resnest_seg.config import LOSSES, TrainConfig
from resnest_seg.data.class_balance import class_weights
from resnest_seg.errors import ConfigError
from resnest_seg.training.losses import SegmentationLoss, _descending, labelled_pixels, lovasz_softmax


def definition(logits, labels):
    total, count = 0.0, 0
    for n in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[n, y, x] != 255:
                    scores = logits[n, :, y, x].double()
                    total += float(torch.logsumexp(scores, 0) - scores[labels[n, y, x]])
                    count += 1
    return total / count


def test_the_loss_is_the_mean_over_labelled_pixels():
    torch.manual_seed(0)
    logits, aux = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 6, 7)
    labels = torch.randint(0, 5, (2, 6, 7))
    labels[0, :4] = 255
    loss = SegmentationLoss(aux_weight=0.2)(logits, aux, labels, pixels=labelled_pixels(labels))
    assert abs(float(loss) - definition(logits, labels) - 0.2 * definition(aux, labels)) < 1e-5
    alone = SegmentationLoss(aux_weight=0.2)(logits, None, labels, pixels=labelled_pixels(labels))
    assert abs(float(alone) - definition(logits, labels)) < 1e-5


def test_an_all_ignored_batch_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.full((1, 4, 4), 255)
    loss = SegmentationLoss(aux_weight=0.2)(logits, None, labels, pixels=labelled_pixels(labels))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_parts_with_a_common_divisor_add_up_to_the_whole():
    """Why the divisor is given: micro-batches with unequal numbers of labelled pixels."""
    torch.manual_seed(1)
    logits, labels = torch.randn(4, 3, 5, 5), torch.randint(0, 3, (4, 5, 5))
    labels[0] = 255
    labels[3, :4] = 255
    loss, pixels = SegmentationLoss(aux_weight=0.0), labelled_pixels(labels)
    parts = sum(loss(logits[n : n + 1], None, labels[n : n + 1], pixels=pixels) for n in range(4))
    assert torch.allclose(parts, loss(logits, None, labels, pixels=pixels))


def test_half_precision_logits_do_not_overflow_the_sum():
    logits = torch.full((1, 2, 400, 400), -20.0, dtype=torch.float16)
    logits[:, 1] = 20.0
    labels = torch.zeros(1, 400, 400, dtype=torch.long)
    loss = SegmentationLoss(aux_weight=0.0)(logits, None, labels, pixels=labelled_pixels(labels))
    assert abs(float(loss) - 40) < 1e-3


def batch(seed=0, size=(2, 5, 6, 7), labels=(24, 28)):
    torch.manual_seed(seed)
    logits = (torch.randn(size) * 3).requires_grad_()
    masks = torch.randint(0, size[1], (size[0], *labels))
    return logits, masks.masked_fill(torch.rand(masks.shape) < 0.3, 255)


def plain_ohem(logits, labels, threshold, min_kept):
    """Pixel by pixel: the hard ones, and where these are too few the hardest."""
    pixels = []
    for n in range(len(labels)):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[n, y, x] != 255:
                    log_p = torch.log_softmax(logits[n, :, y, x].double(), 0)[labels[n, y, x]]
                    pixels.append((float(log_p.exp()), float(-log_p)))
    pixels.sort()
    hard = sum(probability < threshold for probability, _ in pixels)
    kept = [loss for _, loss in pixels[: max(hard, min_kept * len(labels))]]
    return sum(kept) / len(kept), len(kept)


@pytest.mark.parametrize(("threshold", "min_kept", "kept"), [(0.7, 0, None), (0.0, 40, 80), (0.2, 10**6, None)])
def test_ohem_keeps_the_hard_pixels(threshold, min_kept, kept):
    logits, labels = batch()
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
    expected, count = plain_ohem(full.detach(), labels, threshold, min_kept)
    assert kept is None or count == kept
    loss = SegmentationLoss(0.0, names=["ohem"], align_corners=True, ohem_threshold=threshold, ohem_min_kept=min_kept)(
        logits, None, labels, pixels=labelled_pixels(labels)
    )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_ohem_without_hard_pixels_is_zero():
    logits = torch.zeros(1, 2, 4, 4).index_fill(1, torch.tensor([0]), 30.0).requires_grad_()
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    loss = SegmentationLoss(0.0, names=["ohem"], ohem_min_kept=0)(logits, None, labels, pixels=torch.tensor(16))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_class_weights_and_smoothing_give_torchs_mean():
    logits, labels = batch()
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])
    loss = SegmentationLoss(0.0, class_weights=weights, label_smoothing=0.1)
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, labels, weight=weights, label_smoothing=0.1, ignore_index=255)
    assert torch.allclose(loss(logits, None, labels.byte(), pixels=loss.weight_of(labels)), expected, rtol=1e-5)
    assert float(loss.weight_of(labels)) == pytest.approx(
        sum(float(weights[k]) * int((labels == k).sum()) for k in range(5)), rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("dice", smp.losses.DiceLoss),
        ("focal", smp.losses.FocalLoss),
        ("lovasz", smp.losses.LovaszLoss),
        ("tversky", smp.losses.TverskyLoss),
    ],
)
def test_region_losses_are_those_of_smp_on_resized_logits(name, theirs):
    logits, labels = batch()
    loss = SegmentationLoss(0.0, names=[name, "cross_entropy"], align_corners=True)
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
    expected = theirs("multiclass", ignore_index=255)(full, labels) + F.cross_entropy(full, labels, ignore_index=255)
    assert torch.allclose(loss(logits, None, labels, pixels=labelled_pixels(labels)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_ignores_what_is_ignored(name):
    """Logits of the upper half decide nothing where its labels are ignored, and a batch without labels is 0."""
    logits, labels = batch(labels=(6, 7))
    labels[:, :3] = 255
    loss = SegmentationLoss(0.0, names=[name], ohem_min_kept=5)
    value = loss(logits, None, labels, pixels=labelled_pixels(labels))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value > 0
    assert (gradient[:, :, :3] == 0).all()
    assert gradient[:, :, 3:].abs().max() > 0
    nothing = torch.full_like(labels, 255)
    value = loss(logits, logits, nothing, pixels=labelled_pixels(nothing))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert (gradient == 0).all()


def test_means_enter_by_their_share_of_the_divisor():
    logits, labels = batch()
    labels[0, :20] = 255
    loss, pixels = SegmentationLoss(0.0, names=["dice"]), labelled_pixels(labels)
    parts = [loss(logits[n : n + 1], None, labels[n : n + 1], pixels=pixels) for n in range(2)]
    shares = [float(labelled_pixels(labels[n : n + 1]) / pixels) for n in range(2)]
    alone = [loss(logits[n : n + 1], None, labels[n : n + 1], pixels=labelled_pixels(labels[n])) for n in range(2)]
    assert float(sum(parts).detach()) == pytest.approx(
        float((shares[0] * alone[0] + shares[1] * alone[1]).detach()), rel=1e-5
    )


def test_the_loss_of_a_config():
    train = TrainConfig(
        loss="ohem+dice",
        class_weights="median_frequency",
        label_smoothing=0.2,
        ohem_threshold=0.3,
        ohem_min_kept=7,
        aux_weight=0.4,
    )
    weights = torch.rand(5)
    loss = SegmentationLoss.from_config(train, align_corners=True, class_weights=weights)
    assert (loss.names, loss.aux_weight, loss.align_corners) == (("ohem", "dice"), 0.4, True)
    assert (loss.label_smoothing, loss.ohem_threshold, loss.ohem_min_kept) == (0.2, 0.3, 7)
    assert loss.class_weights is weights
    for wrong, tensor in ((train, None), (TrainConfig(), weights)):
        with pytest.raises(ConfigError, match=r"is (median_frequency, and none|none, and weights) were"):
            SegmentationLoss.from_config(wrong, align_corners=True, class_weights=tensor)
    with pytest.raises(ConfigError, match="Did you mean 'lovasz'"):
        SegmentationLoss(0.0, names=["lovas"])


def test_class_weights_by_name():
    counts = np.array([[900, 100, 0], [400, 0, 600]])
    assert class_weights("none", counts) is None
    frequency = [1300 / 2000, 100 / 1000, 600 / 1000]
    assert class_weights("median_frequency", counts).tolist() == pytest.approx([0.6 / f for f in frequency])
    rare_first = class_weights("effective_number", counts).argsort(descending=True)
    assert rare_first.tolist() == [1, 2, 0]
    with pytest.raises(ConfigError, match="Did you mean 'median_frequency'"):
        class_weights("median", counts)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_the_gradient_of_lovasz_is_that_of_smp(scale):
    logits, labels = batch()
    full = scale * F.interpolate(logits.detach(), labels.shape[1:], mode="bilinear")
    full.requires_grad_()
    labels = labels.masked_fill(labels == 3, 1)  # a class that the batch lacks has no part in the mean
    theirs = smp.losses.LovaszLoss("multiclass", ignore_index=255)(full, labels)
    (expected,) = torch.autograd.grad(theirs, full)
    ours = lovasz_softmax(full, labels)
    (gradient,) = torch.autograd.grad(ours, full)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    rounding = 2e-7  # of SMP's Jaccard losses, whose differences are the gradient
    assert (gradient - expected).abs().max() <= rounding + 1e-4 * expected.abs().max()
    assert expected.abs().max() > 100 * rounding
    assert gradient[(labels == 255)[:, None].expand_as(gradient)].abs().max() == 0


def test_errors_are_sorted_by_value_and_then_by_index():
    errors = torch.tensor([0.5, 0.0, 1.0, 1e-42, 0.5, 1.5e-45, float("inf"), 0.0, 3e38, 0.25])
    assert _descending(errors).tolist() == [6, 8, 2, 0, 4, 9, 3, 5, 1, 7]
    errors = (torch.rand(4096) * 8).floor() / 8
    assert _descending(errors).tolist() == sorted(range(4096), key=lambda index: -float(errors[index]))
