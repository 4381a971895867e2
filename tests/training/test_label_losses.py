"""The losses of binary and multi-label tasks against loops, torch and segmentation-models-pytorch."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resnest_seg.config import LABEL_LOSSES
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE
from resnest_seg.training import chunked_loss
from resnest_seg.training.chunked_loss import lean_binary_cross_entropy, lean_cross_entropy
from resnest_seg.training.losses import LabelLoss, lovasz_hinge


def batch(seed=0, *, labels=3, coarse=(6, 7), fine=(24, 28), ignored=0.3, images=2, ignore=MULTILABEL_IGNORE):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(images, labels, *coarse, generator=generator) * 3).requires_grad_()
    bits = torch.randint(0, 1 << labels, (images, *fine), generator=generator)
    return logits, bits.masked_fill(torch.rand(bits.shape, generator=generator) < ignored, ignore)


def planes(bits, labels, ignore=MULTILABEL_IGNORE):
    """Targets [N, K, H, W] and valid pixels [N, H, W], by division."""
    valid = bits.long() != ignore
    return torch.stack([bits.long() // 2**label % 2 for label in range(labels)], 1).double(), valid


def selected(logits, bits, *, ignore, align_corners, pos_weight=None, class_weights=None, gamma=0.0):
    """The sum over the labelled pixels, selected: nothing is masked."""
    full = F.interpolate(logits, bits.shape[1:], mode="bilinear", align_corners=align_corners)
    targets, valid = planes(bits, logits.shape[1], ignore)
    total = full.sum() * 0
    for label in range(logits.shape[1]):
        scores, truth = full[:, label][valid], targets[:, label][valid].to(full.dtype)
        weight = None if pos_weight is None else pos_weight[label].to(full.dtype)
        losses = F.binary_cross_entropy_with_logits(scores, truth, pos_weight=weight, reduction="none")
        if gamma:
            wrong = torch.where(truth > 0, torch.sigmoid(-scores), torch.sigmoid(scores))
            losses = losses * wrong**gamma
        total = total + losses.sum() * (1 if class_weights is None else class_weights[label].to(full.dtype))
    return total


sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
full_sides = st.tuples(st.integers(1, 30), st.integers(1, 30))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    labels=st.integers(1, 15),
    coarse=sides,
    fine=full_sides,
    ignored=st.sampled_from([0.0, 0.5, 0.98, 1.0]),
    align_corners=st.booleans(),
    weighted=st.booleans(),
    gamma=st.sampled_from([0.0, 2.0, 1.5]),
    rows=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from([torch.uint16, torch.int32, torch.int64]),
)
def test_value_and_gradient_are_those_of_torch_on_selected_pixels(
    seed, images, labels, coarse, fine, ignored, align_corners, weighted, gamma, rows, dtype
):
    logits, bits = batch(seed, labels=labels, coarse=coarse, fine=fine, ignored=ignored, images=images)
    weights = torch.rand(2, labels, generator=torch.Generator().manual_seed(seed)) * 3 if weighted else (None, None)
    options = {
        "align_corners": align_corners,
        "pos_weight": weights[0],
        "class_weights": weights[1],
        "gamma": gamma,
    }
    loss = lean_binary_cross_entropy(logits, bits.to(dtype), ignore_label=MULTILABEL_IGNORE, rows=rows, **options)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    exact = logits.detach().double().requires_grad_()
    expected = selected(exact, bits, ignore=MULTILABEL_IGNORE, **options)
    (expected_gradient,) = torch.autograd.grad(3 * expected, exact)
    assert loss.dtype == gradient.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=3e-6, abs=1e-6 * bits.numel())
    scale = max(float(expected_gradient.norm()), 0.1 * (bits.numel() * labels) ** 0.5)
    assert float((gradient - expected_gradient).norm()) < 3e-6 * scale


def loop(logits, bits, gamma, pos_weight, class_weights):
    """The mean, pixel by pixel and label by label."""
    total, divisor = 0.0, 0.0
    for n in range(bits.shape[0]):
        for y in range(bits.shape[1]):
            for x in range(bits.shape[2]):
                if bits[n, y, x] == MULTILABEL_IGNORE:
                    continue
                for label in range(logits.shape[1]):
                    p = 1 / (1 + math.exp(-float(logits[n, label, y, x])))
                    present = int(bits[n, y, x]) & 2**label
                    right, weight = (p, float(pos_weight[label])) if present else (1 - p, 1.0)
                    total += float(class_weights[label]) * weight * (1 - right) ** gamma * -math.log(right)
                    divisor += float(class_weights[label])
    return total / divisor


@pytest.mark.parametrize(("name", "gamma"), [("cross_entropy", 0), ("focal", 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_is_that_of_a_loop(name, gamma, weighted):
    logits, bits = batch(fine=(6, 7))
    pos_weight, class_weights = (torch.tensor([[3.0, 0.5, 1.0], [1.0, 2.0, 0.25]]) if weighted else torch.ones(2, 3),)[
        0
    ]
    loss = LabelLoss(
        "multilabel",
        num_labels=3,
        aux_weight=0.4,
        names=[name],
        pos_weight=pos_weight if weighted else None,
        class_weights=class_weights if weighted else None,
    )
    value = loss(logits, logits / 2, bits, pixels=loss.weight_of(bits)).detach()
    expected = [loop(part.detach(), bits, gamma, pos_weight, class_weights) for part in (logits, logits / 2)]
    assert float(value) == pytest.approx(expected[0] + 0.4 * expected[1], rel=1e-5)


@pytest.mark.parametrize("name", ["focal", "dice", "tversky", "lovasz"])
def test_a_binary_loss_is_that_of_smp(name):
    logits, labels = batch(labels=1, ignore=IGNORE_LABEL)
    loss = LabelLoss("binary", num_labels=1, aux_weight=0, names=[name, "cross_entropy"], align_corners=True)
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
    theirs = getattr(smp.losses, f"{name.capitalize()}Loss")("binary", ignore_index=255)
    expected = theirs(full, labels)
    valid = labels != 255
    expected = expected + F.binary_cross_entropy_with_logits(full[:, 0][valid], labels[valid].float())
    value = loss(logits, None, labels.byte(), pixels=loss.weight_of(labels))
    assert torch.allclose(value, expected, rtol=1e-5)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (value, expected)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
def test_a_region_loss_is_the_mean_of_the_binary_losses_of_the_labels(name):
    logits, bits = batch(labels=4)
    bits = torch.where(bits == MULTILABEL_IGNORE, bits, bits & ~4)  # label 2 is absent
    binary = LabelLoss("binary", num_labels=1, aux_weight=0, names=[name])
    many = LabelLoss("multilabel", num_labels=4, aux_weight=0, names=[name])
    targets, valid = planes(bits, 4)
    parts = []
    for label in range(4):
        masks = targets[:, label].masked_fill(~valid, 255).byte()
        parts.append(float(binary(logits[:, label, None], None, masks, pixels=binary.weight_of(masks)).detach()))
    assert (parts[2] > 0) == (name == "lovasz")
    value = float(many(logits, None, bits, pixels=many.weight_of(bits)).detach())
    assert value == pytest.approx(sum(parts) / 4, rel=1e-5)


def test_dice_and_lovasz_by_their_definitions_on_the_labelled_pixels():
    logits, bits = batch(labels=2, fine=(6, 7))
    targets, valid = planes(bits, 2)
    dice, hinge = [], []
    for label in range(2):
        scores, truth = logits.detach()[:, label][valid].double(), targets[:, label][valid]
        p = torch.sigmoid(scores)
        dice.append(1 - float(2 * (p * truth).sum() / (p.sum() + truth.sum())))
        errors = [max(0.0, 1 - float(s) * (1 if t else -1)) for s, t in zip(scores, truth, strict=True)]
        order, before, total = sorted(range(len(errors)), key=lambda i: -errors[i]), 0.0, 0.0
        for count in range(1, len(order) + 1):  # the pixels of the largest errors are wrong, the others right
            wrong = set(order[:count])
            intersection = sum(bool(truth[i]) for i in order if i not in wrong)
            union = sum(bool(truth[i]) or i in wrong for i in order)
            jaccard = 1 - intersection / union
            total += errors[order[count - 1]] * (jaccard - before)
            before = jaccard
        hinge.append(total)
    for name, expected in (("dice", dice), ("lovasz", hinge)):
        loss = LabelLoss("multilabel", num_labels=2, aux_weight=0, names=[name])
        value = float(loss(logits, None, bits, pixels=loss.weight_of(bits)).detach())
        assert value == pytest.approx(sum(expected) / 2, rel=1e-5), name


def test_one_logit_is_a_softmax_of_two_classes():
    """Value and gradient by the loss of another task: log(1 + exp(-x)) is the cross-entropy of (0, x)."""
    logits, labels = batch(labels=1, ignore=IGNORE_LABEL)
    ours = lean_binary_cross_entropy(logits, labels, ignore_label=IGNORE_LABEL, align_corners=True)
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    theirs = lean_cross_entropy(two, labels, align_corners=True)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert torch.allclose(*(torch.autograd.grad(x, logits)[0] for x in (ours, theirs)), atol=1e-5)


TASKS = {"binary": (1, IGNORE_LABEL), "multilabel": (3, MULTILABEL_IGNORE)}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_every_loss_ignores_what_is_ignored(task, name):
    """Logits of the upper half decide nothing where its labels are ignored, and a batch without labels is 0."""
    count, ignore = TASKS[task]
    logits, labels = batch(labels=count, fine=(6, 7), ignore=ignore)
    labels[:, :3] = ignore
    loss = LabelLoss(task, num_labels=count, aux_weight=0.3, names=[name])
    value = loss(logits, None, labels, pixels=loss.weight_of(labels))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value > 0
    assert (gradient[:, :, :3] == 0).all()
    assert gradient[:, :, 3:].abs().max() > 0
    other = logits.detach().clone()
    other[:, :, :3] = -1e4
    assert torch.equal(loss(other, None, labels, pixels=loss.weight_of(labels)), value)
    nothing = torch.full_like(labels, ignore)
    value = loss(logits, logits, nothing, pixels=loss.weight_of(nothing))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert (gradient == 0).all()


def test_what_is_not_a_number_where_ignored_does_not_matter():
    logits, bits = batch(fine=(6, 7))
    broken = logits.detach().masked_fill((bits == MULTILABEL_IGNORE)[:, None], torch.nan).requires_grad_()
    results = []
    for values in (logits, broken):
        loss = lean_binary_cross_entropy(values, bits, ignore_label=MULTILABEL_IGNORE, align_corners=False, gamma=2)
        results.append((loss.detach(), torch.autograd.grad(loss, values)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_and_half_precision_stay_finite(task, name, dtype):
    """In half precision under autocast, the loss is that of the same logits in float32."""
    count, ignore = TASKS[task]
    signs, labels = batch(labels=count, ignore=ignore, coarse=(24, 28))
    logits = (signs.detach().sign() * 1e4).to(dtype).requires_grad_()
    loss = LabelLoss(task, num_labels=count, aux_weight=0, names=[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, None, labels, pixels=loss.weight_of(labels))
    (gradient,) = torch.autograd.grad(value, logits)
    single = loss(logits.detach().float(), None, labels, pixels=loss.weight_of(labels))
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert value > 0
    assert gradient.isfinite().all()
    assert float(value.detach()) == pytest.approx(float(single), rel=1e-6)


def test_wrong_by_ten_thousand_costs_ten_thousand():
    logits = torch.tensor([[[[1e4, -1e4, 1e4, -1e4]]]], requires_grad=True)
    labels = torch.tensor([[[0, 1, 1, 0]]])
    for gamma in (0.0, 2.0):
        loss = lean_binary_cross_entropy(logits, labels, ignore_label=255, align_corners=False, gamma=gamma)
        assert float(loss.detach()) == 2e4
        assert torch.autograd.grad(loss, logits)[0].flatten().tolist() == [1, -1, 0, 0]


@pytest.mark.parametrize("names", [["cross_entropy"], ["focal"], ["cross_entropy", "focal"]])
def test_parts_with_a_common_divisor_add_up_to_the_whole(names):
    logits, bits = batch(images=4)
    bits[0] = MULTILABEL_IGNORE
    bits[3, :20] = MULTILABEL_IGNORE
    weights = {"class_weights": torch.tensor([1.0, 0.2, 3.0]), "pos_weight": torch.tensor([2.0, 9.0, 0.5])}
    loss = LabelLoss("multilabel", num_labels=3, aux_weight=0.4, names=names, **weights)
    pixels = sum(loss.weight_of(bits[n : n + 1]) for n in range(4))
    parts = sum(loss(logits[n : n + 1], logits[n : n + 1], bits[n : n + 1], pixels=pixels) for n in range(4))
    assert torch.allclose(parts, loss(logits, logits, bits, pixels=loss.weight_of(bits)), rtol=1e-5)
    alone = loss(logits[3:], None, bits[3:], pixels=loss.weight_of(bits[3:]))
    assert not torch.allclose(alone, loss(logits, None, bits, pixels=loss.weight_of(bits)), rtol=1e-3)


def test_means_enter_by_their_share_of_the_divisor():
    logits, bits = batch()
    bits[0, :20] = MULTILABEL_IGNORE
    loss = LabelLoss("multilabel", num_labels=3, aux_weight=0, names=["dice"])
    pixels = loss.weight_of(bits)
    parts = [loss(logits[n : n + 1], None, bits[n : n + 1], pixels=pixels) for n in range(2)]
    alone = [loss(logits[n : n + 1], None, bits[n : n + 1], pixels=loss.weight_of(bits[n])) for n in range(2)]
    shares = [float(loss.weight_of(bits[n]) / pixels) for n in range(2)]
    expected = (shares[0] * alone[0] + shares[1] * alone[1]).detach()
    assert float(sum(parts).detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_gradcheck(gamma):
    logits, bits = batch(1, images=1, coarse=(3, 4), fine=(7, 5))
    weights = torch.tensor([[0.5, 1.0, 2.0], [3.0, 0.1, 1.0]], dtype=torch.float64)

    def loss(values):
        return lean_binary_cross_entropy(
            values,
            bits,
            ignore_label=MULTILABEL_IGNORE,
            align_corners=True,
            pos_weight=weights[0],
            class_weights=weights[1],
            gamma=gamma,
            rows=2,
        )

    assert torch.autograd.gradcheck(loss, (logits.detach().double().requires_grad_(),))


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_the_operator_describes_itself_rightly(needs_gradient):
    """torch's own check of the schema, the shapes for tracing and the autograd registration."""
    logits, bits = batch(9)
    logits.requires_grad_(needs_gradient)
    operator = torch.ops.resnest_seg.summed_binary_cross_entropy.default
    options = MULTILABEL_IGNORE, torch.rand(3), None, 2.0, True, 3, needs_gradient
    torch.library.opcheck(operator, (logits, bits, *options))


def test_compiled_it_is_one_operator():
    logits, bits = batch(8)

    def loss(values):
        return lean_binary_cross_entropy(values * 2, bits, ignore_label=MULTILABEL_IGNORE, align_corners=True) / 3

    value = torch.compile(loss, backend="aot_eager", fullgraph=True)(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.equal(value, loss(logits))
    assert torch.equal(gradient, torch.autograd.grad(loss(logits), logits)[0])


def test_only_a_gradient_of_feature_size_is_kept_and_none_without_need(monkeypatch):
    logits, bits = batch(6, labels=15)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        lean_binary_cross_entropy(logits, bits, ignore_label=MULTILABEL_IGNORE, align_corners=True)
    assert kept == [(2, 15, 6, 7)]
    monkeypatch.setattr(chunked_loss, "_coarse_rows", lambda *arguments: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        lean_binary_cross_entropy(logits, bits, ignore_label=MULTILABEL_IGNORE, align_corners=True)


def test_mistakes():
    logits, bits = batch(ignored=0)
    lean = {"ignore_label": MULTILABEL_IGNORE, "align_corners": True}
    with pytest.raises(ConfigError, match=r"there are 3 classes, but pos_weight of shape \[4\]"):
        lean_binary_cross_entropy(logits, bits, pos_weight=torch.ones(4), **lean)
    with pytest.raises(ConfigError, match=r"do not match: \[2, 3, 6, 7\] and \[1, 24, 28\]"):
        lean_binary_cross_entropy(logits, bits[:1], **lean)
    for value in (8, 255, -1, MULTILABEL_IGNORE + 1):
        bits[1, 2, 3] = value
        with pytest.raises(
            DatasetError, match=rf"a label is {value}, but the model has 3 label\(s\) \(0..7, and 32768"
        ):
            lean_binary_cross_entropy(logits, bits, **lean)
    with pytest.raises(ConfigError, match="16 labels do not fit below the value 32768"):
        lean_binary_cross_entropy(torch.zeros(1, 16, 2, 2), torch.zeros(1, 2, 2), **lean)
    with pytest.raises(ConfigError, match="Did you mean 'multilabel'"):
        LabelLoss("multilable", num_labels=3, aux_weight=0)
    with pytest.raises(ConfigError, match=r"loss of a binary task 'dise'.*Did you mean 'dice'"):
        LabelLoss("binary", num_labels=1, aux_weight=0, names=["dise"])
    with pytest.raises(ConfigError, match=r"there are 3 labels, but class weights of shape \[2\]"):
        LabelLoss("multilabel", num_labels=3, aux_weight=0, class_weights=torch.ones(2))


def test_the_gradient_of_the_hinge_is_that_of_smp_for_each_label():
    logits, bits = batch(labels=3, fine=(16, 18))
    targets, valid = planes(bits, 3)
    full = torch.nn.functional.interpolate(logits.detach(), (16, 18), mode="bilinear").requires_grad_()
    signed = targets.to(torch.int8).masked_fill(~valid[:, None], -1)
    theirs = smp.losses.LovaszLoss("binary", ignore_index=-1)
    expected = sum(theirs(full[:, label], signed[:, label]) for label in range(3)) / 3
    ours = lovasz_hinge(full, signed)
    assert torch.allclose(ours, expected, rtol=1e-5)
    (want,), (have,) = torch.autograd.grad(expected, full), torch.autograd.grad(ours, full)
    assert (have - want).abs().max() <= 2e-7 + 1e-4 * want.abs().max()
