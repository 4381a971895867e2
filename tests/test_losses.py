"""The loss against its definition."""

import torch

from resnest_seg.losses import SegmentationLoss, labelled_pixels


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
