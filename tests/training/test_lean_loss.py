"""The lean cross-entropy against the plain form, and laws of its memory."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.training import chunked_loss as lean_loss
from resnest_seg.training.chunked_loss import lean_cross_entropy, true_class_probabilities


def plain(logits, labels, *, align_corners, label_smoothing=0.0, class_weights=None):
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(
        full,
        labels.long(),
        weight=class_weights,
        label_smoothing=label_smoothing,
        reduction="sum",
        ignore_index=255,
    )


def batch(seed, images, classes, coarse, fine, ignored, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(images, classes, *coarse, generator=generator) * 4).to(dtype).requires_grad_()
    labels = torch.randint(0, classes, (images, *fine), generator=generator)
    return logits, labels.masked_fill(torch.rand(labels.shape, generator=generator) < ignored, 255)


def distance(a, b):
    """Relative, in the norm."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@pytest.fixture(params=[False, True], ids=["as on a CPU", "as on a GPU"])
def products(request, monkeypatch):
    """Both ways through the arithmetic; products of matrices, a GPU's way, run on this CPU."""
    monkeypatch.setattr(lean_loss, "_multiplies", lambda device: request.param)


sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
full_sides = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    classes=st.integers(2, 20),
    coarse=sides,
    fine=full_sides,
    ignored=st.sampled_from([0.0, 0.5, 0.98, 1.0]),
    align_corners=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    rows=st.sampled_from([None, 1, 3]),
    channels_last=st.booleans(),
    small=st.booleans(),
    products=st.booleans(),
)
def test_value_and_gradient_are_those_of_the_plain_form(
    seed,
    images,
    classes,
    coarse,
    fine,
    ignored,
    align_corners,
    smoothing,
    weighted,
    rows,
    channels_last,
    small,
    products,
):
    logits, labels = batch(seed, images, classes, coarse, fine, ignored)
    if channels_last:
        logits = logits.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.rand(classes, generator=torch.Generator().manual_seed(seed)) + 0.1 if weighted else None
    options = {"align_corners": align_corners, "label_smoothing": smoothing, "class_weights": weights}
    with mock.patch.object(lean_loss, "_multiplies", return_value=products):
        loss = lean_cross_entropy(logits, labels.byte() if small else labels, rows=rows, **options)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    exact = logits.detach().double().requires_grad_()
    options["class_weights"] = None if weights is None else weights.double()
    expected = plain(exact, labels, **options)
    (expected_gradient,) = torch.autograd.grad(3 * expected, exact)
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-6 * labels.numel())
    # float32 places a pixel between two coarse ones up to 1e-6 off; the plain float32 form is as far from float64
    single = logits.detach().clone().requires_grad_()
    options["class_weights"] = weights
    (plain_gradient,) = torch.autograd.grad(3 * plain(single, labels, **options), single)
    scale = max(float(expected_gradient.norm()), 0.1 * labels.numel() ** 0.5)
    off, plainly_off = (float((g - expected_gradient).norm()) / scale for g in (gradient, plain_gradient))
    # exp(x - logsumexp) in float32 is off by a share of eps |x|, which shows where one pixel alone is labelled
    rounding = 3 * torch.finfo(torch.float32).eps * float(logits.detach().abs().max())
    assert off < max(1e-6, rounding, 2 * plainly_off)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    """Under autocast too, which would round the arithmetic."""
    logits, labels = batch(0, 2, 7, (6, 5), (48, 40), 0.2, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = lean_cross_entropy(logits, labels, align_corners=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    single = logits.detach().float().requires_grad_()
    expected = plain(single, labels, align_corners=True)
    (expected_gradient,) = torch.autograd.grad(expected, single)
    assert loss.dtype == torch.float32
    assert distance(loss, expected) < 1e-6
    assert gradient.dtype == dtype
    assert distance(gradient, expected_gradient.to(dtype)) < 1e-4  # a few values round the other way


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradcheck(align_corners, smoothing, products):
    logits, labels = batch(1, 1, 4, (3, 4), (7, 5), 0.3, torch.float64)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)

    def loss(values):
        return lean_cross_entropy(
            values, labels, align_corners=align_corners, label_smoothing=smoothing, class_weights=weights, rows=2
        )

    assert torch.autograd.gradcheck(loss, (logits,))


def test_logits_far_apart_stay_finite(products):
    """exp of these overflows or vanishes, unless the largest is taken off at each full-size pixel."""
    logits = torch.tensor([[[[300.0, -300.0]], [[-300.0, 300.0]]]], requires_grad=True)
    labels = torch.tensor([[[0, 0, 0, 0, 1]]])
    loss = lean_cross_entropy(logits, labels, align_corners=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(float(torch.tensor(2.0).log()) + 300)
    assert gradient.isfinite().all()


def test_a_single_class_is_always_right():
    logits, labels = batch(11, 2, 1, (4, 4), (16, 16), 0.2)
    loss = lean_cross_entropy(logits, labels, align_corners=False, label_smoothing=0.1)
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() < 1e-6 * labels.numel()  # (1 - 0.1) + 0.1 - 1 in float32


def test_all_ignored_is_zero(products):
    logits, labels = batch(2, 2, 5, (4, 4), (16, 16), 1.0)
    loss = lean_cross_entropy(logits, labels, align_corners=False)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_chunks_add_up(products):
    logits, labels = batch(3, 2, 5, (7, 6), (50, 44), 0.3)
    results = []
    for rows in (1, 7, 49, 50, None):
        loss = lean_cross_entropy(logits, labels, align_corners=False, rows=rows)
        results.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
    for loss, gradient in results[1:]:
        assert distance(loss, results[0][0]) < 1e-6
        assert distance(gradient, results[0][1]) < 1e-6


def test_threads_change_no_bit(one_thread):
    logits, labels = batch(3, 2, 5, (7, 6), (50, 44), 0.3)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        loss = lean_cross_entropy(logits, labels, align_corners=False, rows=4)
        results.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
        assert torch.get_num_threads() == threads
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_probabilities_are_those_of_softmax(products, monkeypatch):
    monkeypatch.setattr(lean_loss, "GPU_CHUNK", 2**8)
    monkeypatch.setattr(lean_loss, "CPU_CHUNK", 2**8)
    logits, labels = batch(4, 2, 5, (4, 6), (19, 33), 0.3)
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True).softmax(1)
    expected = full.gather(1, labels.masked_fill(labels == 255, 0)[:, None])[:, 0].masked_fill(labels == 255, 1)
    assert torch.allclose(true_class_probabilities(logits, labels, align_corners=True), expected, atol=1e-6)


def test_a_gpu_has_few_chunks_whatever_the_batch():
    """Each launches some thirty kernels."""
    with mock.patch.object(lean_loss, "_multiplies", return_value=True):
        for images, classes in ((1, 150), (4, 19), (16, 2)):
            logits, labels = torch.zeros(images, classes, 60, 60), torch.zeros(images, 480, 480, dtype=torch.uint8)
            chunks = lean_loss._Plan.of(logits, labels, True, 0).chunks
            assert len(chunks) <= lean_loss.GPU_CHUNKS + 1
            assert sum(labels[chunk].numel() for chunk in chunks) == labels.numel()


class LargestOutput(TorchDispatchMode):
    """The largest number of elements that any operation returned."""

    size = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        self.size = max([self.size, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_nothing_of_full_size_is_made(monkeypatch, one_thread, products):
    """In one thread, because other threads' operations go unseen."""
    monkeypatch.setattr(lean_loss, "CPU_CHUNK", 2**12)
    monkeypatch.setattr(lean_loss, "GPU_CHUNK", 2**12)
    monkeypatch.setattr(lean_loss, "GPU_CHUNKS", 2**6)
    logits, labels = batch(5, 2, 20, (8, 8), (64, 64), 0.1)
    with LargestOutput() as lean:
        lean_loss._summed_loss_and_gradient(logits.detach(), labels, None, 0.1, True, 0, True)
        true_class_probabilities(logits, labels, align_corners=True)
    with LargestOutput() as whole:
        plain(logits.detach(), labels, align_corners=True)
    assert whole.size == 2 * 20 * 64 * 64
    assert lean.size <= 2 * 64 * 64  # the labels; chunks are smaller


def test_only_a_gradient_of_feature_size_is_kept():
    logits, labels = batch(6, 2, 20, (8, 8), (64, 64), 0.1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        lean_cross_entropy(logits, labels, align_corners=True)
    assert kept == [(2, 20, 8, 8)]


def test_without_gradients_none_is_computed(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(lean_loss, "_coarse_rows", refuse)
    logits, labels = batch(7, 1, 3, (4, 4), (16, 16), 0.1)
    with torch.no_grad():
        loss = lean_cross_entropy(logits, labels, align_corners=True)
        assert distance(loss, plain(logits, labels, align_corners=True)) < 1e-6
    with pytest.raises(AssertionError, match="a gradient was computed"):
        lean_cross_entropy(logits, labels, align_corners=True)


def test_compiled_it_is_one_operator():
    logits, labels = batch(8, 2, 5, (4, 4), (16, 20), 0.3)

    def loss(values):
        return lean_cross_entropy(values * 2, labels, align_corners=True) / 3

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    value = compiled(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    (expected,) = torch.autograd.grad(loss(logits), logits)
    assert torch.equal(value, loss(logits))
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_the_operator_describes_itself_rightly(needs_gradient):
    """torch's own check of the schema, the shapes for tracing and the autograd registration."""
    logits, labels = batch(9, 2, 5, (4, 4), (16, 20), 0.3)
    logits.requires_grad_(needs_gradient)
    operator = torch.ops.resnest_seg.summed_cross_entropy.default
    torch.library.opcheck(operator, (logits, labels, torch.rand(5), 0.1, True, 3, needs_gradient))


def test_mistakes():
    logits, labels = batch(10, 2, 5, (4, 4), (8, 8), 0.0)
    with pytest.raises(ConfigError, match=r"do not match: \[2, 5, 4, 4\] and \[1, 8, 8\]"):
        lean_cross_entropy(logits, labels[:1], align_corners=True)
    with pytest.raises(ConfigError, match=r"there are 5 classes, but class weights of shape \[4\]"):
        lean_cross_entropy(logits, labels, align_corners=True, class_weights=torch.ones(4))
    labels[1, 2, 3] = 7
    with pytest.raises(DatasetError, match="a label is 7, but the model has 5 classes"):
        lean_cross_entropy(logits, labels, align_corners=True)
