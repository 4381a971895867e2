"""Cross-entropies of logits at feature size against labels at full size, without a tensor of full size and K channels.

The plain form, `F.cross_entropy(F.interpolate(logits, (H, W), mode="bilinear"), labels)`, holds the resized logits,
their log-softmax and two gradients at once: at 150 classes that is most of a training step's memory, and writing it is
most of the loss's time. Here a chunk of rows is resized (two coarse rows are interpolated, then the columns), its
losses and gradients are computed while it is in the cache, and the gradients are reduced to feature size by the
transposed interpolation, all in the forward pass; the backward pass multiplies by a scalar.

The binary cross-entropy and the focal loss of binary and multi-label tasks are computed in the same way.

The loss is one operator, which `torch.compile` does not trace into. Arithmetic is float32 (float64 for float64
logits), also under autocast. There is no second derivative. On a GPU, the gradient's last bits depend on the order of
additions, as those of `F.interpolate` do, except under `torch.use_deterministic_algorithms(True)`.

Shapes: N batch, K classes, h x w feature pixels, H x W label pixels, R rows at a time, P = R * W.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensor

from resnest_seg.errors import ConfigError, DatasetError, command
from resnest_seg.labels import IGNORE_LABEL, MAX_LABELS, MULTILABEL_IGNORE

T = TypeVar("T")

CPU_CHUNK = 2**18
"""Elements of a chunk [R, W, K] on each core of a CPU: 1 MiB, which fits into its cache."""

GPU_CHUNK, GPU_CHUNKS = 2**23, 16
"""Minimum elements of a chunk on other devices, and maximum number of chunks: a kernel is launched for each of some
thirty operations of a chunk, which takes a processor longer than a GPU needs for a small one."""


def lean_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    align_corners: bool,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    rows: int | None = None,
) -> Tensor:
    """Sum the cross-entropy over labelled pixels: float32 scalar (float64 for float64 logits).

    Value and gradient equal those of `F.cross_entropy` with `reduction="sum"` on logits resized by `F.interpolate`.
    Divide by the number of labelled pixels for the mean, or with class weights by the sum of the labels' weights, as
    `reduction="mean"` does. Logits may be smaller than, equal to or larger than the labels, along each side.

    Args:
        logits: [N, K, h, w], any float type.
        labels: [N, H, W] uint8 or int64, 0..K-1 or `IGNORE_LABEL`.
        align_corners: As in `F.interpolate`.
        label_smoothing: Share of the target that is spread over all classes, 0..1.
        class_weights: Class weights, [K]; None for uniform weights.
        rows: Label rows per chunk, R; None chooses for the device. It affects memory and time, not the result.

    Raises:
        ConfigError: The shapes do not match.
        DatasetError: A label is out of range (on a CPU; on a GPU a device-side assertion fails).
    """
    _check(logits, labels, class_weights)
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad
    # positional: an operator's autograd does not support keywords
    out = _summed_loss(logits, labels, class_weights, label_smoothing, align_corners, rows or 0, needs_gradient)
    total: Tensor = out[0]
    return total


def lean_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_label: int,
    align_corners: bool,
    pos_weight: Tensor | None = None,
    class_weights: Tensor | None = None,
    gamma: float = 0.0,
    rows: int | None = None,
) -> Tensor:
    """Sum the binary cross-entropy over labelled pixels and labels: float32 scalar (float64 for float64 logits).

    Value and gradient equal those of `F.binary_cross_entropy_with_logits` with `reduction="sum"` on the labelled pixels
    of logits resized by `F.interpolate`. Divide by the number of labelled pixels times K for the mean, or with class
    weights by the number of labelled pixels times the sum of the weights.

    Args:
        logits: [N, K, h, w], any float type; K = 1 for a binary task.
        labels: [N, H, W] of any integer type: bit k is label k, so 0 and 1 for a binary task.
        ignore_label: Value of ignored pixels: `IGNORE_LABEL` in binary masks, `MULTILABEL_IGNORE` in multi-label ones.
        align_corners: As in `F.interpolate`.
        pos_weight: Weight of the pixels that have a label, [K]; None for 1.
        class_weights: Weight of all pixels of a label, [K]; None for 1.
        gamma: Exponent of the focal loss (Lin et al., https://arxiv.org/abs/1708.02002): each loss is multiplied by
            (1 - the probability of what is true) ** gamma; 0 is the cross-entropy.
        rows: Label rows per chunk, R; None chooses for the device. It affects memory and time, not the result.

    Raises:
        ConfigError: The shapes do not match, or the labels have fewer bits than the logits have channels.
        DatasetError: A label is out of range (on a CPU; on a GPU other bits are without meaning).
    """
    _check_shapes(logits, labels, class_weights=class_weights, pos_weight=pos_weight)
    _check_bits(labels, logits.shape[1], ignore_label)
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad
    options = ignore_label, pos_weight, class_weights, float(gamma), align_corners, rows or 0, needs_gradient
    total: Tensor = _summed_binary_loss(logits, labels, *options)[0]
    return total


@torch.no_grad()
def true_class_probabilities(logits: Tensor, labels: Tensor, *, align_corners: bool) -> Tensor:
    """Compute the probability of each pixel's true class, [N, H, W] float32 without gradient; 1 where ignored.

    Args:
        logits: [N, K, h, w].
        labels: [N, H, W] uint8 or int64, 0..K-1 or `IGNORE_LABEL`.
        align_corners: As in `F.interpolate`.

    Raises:
        ConfigError: The shapes do not match.
        DatasetError: A label is out of range (on a CPU).
    """
    _check(logits, labels, None)
    plan = _Plan.of(logits, labels, align_corners, 0)

    def losses(chunk: _Chunk) -> Tensor:
        return _pixel_losses(_rows_of(logits, plan, chunk), labels[chunk].reshape(-1))

    found = torch.empty(labels.shape, dtype=plan.dtype, device=logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        for chunk, values in zip(plan.chunks, _each(losses, plan.chunks, logits.device), strict=True):
            part = found[chunk]
            torch.exp(-values.view(part.shape), out=part)
    return found


class _Axis(NamedTuple):
    """Interpolation along one axis: pixel i is pixel low[i] with weight 1 - mix[i] plus high[i] with weight mix[i]."""

    low: Tensor
    high: Tensor
    mix: Tensor

    @classmethod
    def of(cls, coarse: int, fine: int, align_corners: bool, dtype: torch.dtype) -> _Axis | None:
        """Compute `F.interpolate`'s weights, on the CPU; None for equal sizes."""
        if coarse == fine:
            return None
        position = torch.arange(fine, dtype=dtype)
        if align_corners:
            position = position * ((coarse - 1) / (fine - 1) if fine > 1 else 0.0)
        else:
            position = ((position + 0.5) * (coarse / fine) - 0.5).clamp(min=0)
        low = position.long().clamp(max=coarse - 1)
        return cls(low, (low + 1).clamp(max=coarse - 1), position - low)

    def to(self, device: torch.device) -> _Axis:
        return _Axis(*(values.to(device, non_blocking=True) for values in self))  # a GPU need not wait for them

    def part(self, pixels: slice) -> _Axis:
        return _Axis(*(values[pixels] for values in self))

    def resize(self, values: Tensor, dim: int) -> Tensor:
        mix = self.mix.view(-1, *[1] * (values.dim() - 1 - dim)).to(values.dtype)
        return torch.lerp(values.index_select(dim, self.low), values.index_select(dim, self.high), mix)

    def add_back(self, total: Tensor, gradient: Tensor, dim: int) -> None:
        """Apply the transpose of `resize` to [.., fine, ..] and add it to `total` [.., coarse, ..]."""
        far = gradient * self.mix.view(-1, *[1] * (gradient.dim() - 1 - dim))
        total.index_add_(dim, self.high, far)
        total.index_add_(dim, self.low, gradient.sub_(far))

    def matrix(self, coarse: int) -> Tensor:
        """The interpolation as a matrix [fine, coarse] with two weights a row."""
        weights = self.mix.new_zeros(len(self.mix), coarse)
        weights.scatter_add_(1, self.low[:, None], 1 - self.mix[:, None])
        return weights.scatter_add_(1, self.high[:, None], self.mix[:, None])


def _product(matrix: Tensor, values: Tensor) -> Tensor:
    """Apply a matrix [a, b] to [B, b, ..]: [B, a, ..]."""
    with _full_precision():
        product = torch.bmm(matrix.expand(len(values), -1, -1), values.flatten(2))
    return product.view(len(values), -1, *values.shape[2:])


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply matrices of float32 in float32 on GPUs, also where the program has allowed TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


_Chunk = tuple[slice, slice]
"""Images and rows: `labels[chunk]` are the labels of the chunk, [n, R, W]."""


class _Plan(NamedTuple):
    """The state that all chunks of a call share; `spans` maps the top row of a chunk to the coarse rows it needs.

    With `products`, a chunk holds rows of all images, and products with `matrix`, [W, w], resize columns and reduce
    their gradients: a GPU adds by index with atomic operations, which take longer, and in an order of its own.
    """

    dtype: torch.dtype
    products: bool
    vertical: _Axis | None
    horizontal: _Axis | None
    matrix: Tensor | None
    spans: dict[int, slice]
    chunks: list[_Chunk]

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, align_corners: bool, rows: int) -> _Plan:
        """Plan chunks of `rows` rows; 0 chooses for the device."""
        (images, classes, h, w), (height, width) = logits.shape, labels.shape[1:]
        device, dtype = logits.device, torch.promote_types(logits.dtype, torch.float32)
        products = _multiplies(device)
        size = max(GPU_CHUNK, labels.numel() * classes // GPU_CHUNKS) if products else CPU_CHUNK
        together = images if products else 1
        rows = max(min(rows or size // max(together * width * classes, 1), height), 1)
        vertical, horizontal = (_Axis.of(a, b, align_corners, dtype) for a, b in ((h, height), (w, width)))
        tops = range(0, height, rows)
        spans = {}
        for top in tops:
            bottom = min(top + rows, height)
            inside = (vertical.low[top], vertical.high[bottom - 1] + 1) if vertical is not None else (top, bottom)
            spans[top] = slice(int(inside[0]), int(inside[1]))
        return cls(
            dtype,
            products,
            None if vertical is None else vertical.to(device),
            None if horizontal is None else horizontal.to(device),
            horizontal.matrix(w).to(device, non_blocking=True) if horizontal is not None and products else None,
            spans,
            [(slice(n, n + together), slice(y, y + rows)) for n in range(0, images, max(together, 1)) for y in tops],
        )


def _multiplies(device: torch.device) -> bool:
    """Whether products of matrices reduce gradients faster than additions by index."""
    return device.type != "cpu"


def _each(work: Callable[[_Chunk], T], chunks: list[_Chunk], device: torch.device) -> Iterator[T]:
    """Yield the results of `work` for all chunks, in order.

    On a CPU each core takes whole chunks: splitting every small operation over the cores, as torch does, synchronises
    them hundreds of times, which on a busy machine costs more than the work.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or min(threads, len(chunks)) < 2:
        yield from (work(chunk) for chunk in chunks)
        return

    @torch.no_grad()  # grad mode is thread-local
    def quietly(chunk: _Chunk) -> T:
        return work(chunk)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, len(chunks))) as pool:
            pending: deque[Future[T]] = deque()
            for chunk in chunks:
                pending.append(pool.submit(quietly, chunk))
                if len(pending) > 2 * threads:  # bounded, because results take memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _rows_of(logits: Tensor, plan: _Plan, chunk: _Chunk) -> Tensor:
    """Resize the logits for a chunk: a new tensor [P, K] in the dtype of the arithmetic."""
    images = logits[chunk[0]].permute(0, 2, 3, 1)  # [n, h, w, K]
    if plan.vertical is None:
        rows = images[:, chunk[1]].to(plan.dtype)
    else:
        axis = plan.vertical.part(chunk[1])
        rows = torch.lerp(
            images.index_select(1, axis.low).to(plan.dtype),
            images.index_select(1, axis.high).to(plan.dtype),
            axis.mix[:, None, None],
        )
    if plan.horizontal is None:
        return rows.flatten(0, 2).clone() if plan.vertical is None else rows.flatten(0, 2)
    if plan.matrix is not None:
        return _product(plan.matrix, rows.flatten(0, 1)).flatten(0, 1)
    return plan.horizontal.resize(rows, 2).flatten(0, 2)


def _pixel_losses(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    gradient: bool = False,
) -> Tensor:
    """Compute losses [P], 0 where ignored; overwrites `logits` [P, K], with their gradients if requested.

    With w the class's weight and e the smoothing, a pixel's loss is (1 - e) w[y] (-log p[y]) + e / K sum_k w[k] (-log
    p[k]), and its gradient a p - (1 - e) w[y] onehot(y) - e / K w, where a = (1 - e) w[y] + e / K sum w.
    """
    keep = labels != IGNORE_LABEL
    target = labels.masked_fill(~keep, 0).long()
    logits -= logits.amax(1, keepdim=True)
    picked = logits.gather(1, target[:, None]).squeeze(1)
    sharp = keep.to(logits.dtype) * (1 - smoothing)
    if weights is not None:
        sharp *= weights[target]
    if smoothing:
        spread = torch.full_like(logits[0], 1 / len(logits[0])) if weights is None else weights / len(weights)
        spread = smoothing * spread
        spread_logits = (logits * spread).sum(1)
    odds = logits.exp_()
    sums = odds.sum(1)
    log_sums = sums.log()
    losses = sharp * (log_sums - picked)
    share = sharp
    if smoothing:
        smooth = keep.to(logits.dtype) * spread.sum()
        losses += smooth * log_sums - spread_logits
        share = sharp + smooth
    if gradient:
        odds *= (share / sums)[:, None]
        odds.scatter_add_(1, target[:, None], -sharp[:, None])
        if smoothing:
            odds.addcmul_(keep.to(logits.dtype)[:, None], spread[None], value=-1)
    return losses.masked_fill(~keep, 0)


@torch.library.custom_op("resnest_seg::summed_cross_entropy", mutates_args=())
def _summed_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    smoothing: float,
    align_corners: bool,
    rows: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the summed loss and its gradient [N, K, h, w] in channels-last memory, empty if not needed."""
    with torch.autocast(logits.device.type, enabled=False):
        return _summed_loss_and_gradient(
            logits.detach(), labels, weights, smoothing, align_corners, rows, needs_gradient
        )


def _summed_loss_and_gradient(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    smoothing: float,
    align_corners: bool,
    rows: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    plan = _Plan.of(logits, labels, align_corners, rows)
    weights = None if weights is None else weights.to(logits.device, plan.dtype)

    def losses(pixels: Tensor, part: Tensor) -> Tensor:
        return _pixel_losses(pixels, part, weights, smoothing, needs_gradient)

    return _sum_of_chunks(logits, labels, plan, losses, IGNORE_LABEL, needs_gradient)


def _sum_of_chunks(
    logits: Tensor,
    labels: Tensor,
    plan: _Plan,
    losses: Callable[[Tensor, Tensor], Tensor],
    ignore_label: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Sum `losses` of all chunks: of logits [P, K], which it overwrites with gradients, and labels [P]."""
    images, classes, h, w = logits.shape
    gradient = logits.new_zeros((images, h, w, classes) if needs_gradient else 0, dtype=plan.dtype)
    nothing = logits.new_zeros((), dtype=plan.dtype)

    def work(chunk: _Chunk) -> tuple[Tensor, Tensor | None]:
        part = labels[chunk]
        if part.device.type == "cpu" and bool((part == ignore_label).all()):
            return nothing, None  # padding; on other devices the check would cost more than the computation
        pixels = _rows_of(logits, plan, chunk)
        loss = losses(pixels, part.reshape(-1)).sum()
        return loss, _coarse_rows(pixels.view(*part.shape, classes), plan, chunk, w) if needs_gradient else None

    sums = [nothing]
    for chunk, (loss, rows_gradient) in zip(plan.chunks, _each(work, plan.chunks, logits.device), strict=True):
        sums.append(loss)
        if rows_gradient is not None:
            gradient[chunk[0], plan.spans[chunk[1].start]] += rows_gradient
    return torch.stack(sums).sum(), gradient.permute(0, 3, 1, 2) if needs_gradient else gradient


def _label_losses(
    logits: Tensor,
    labels: Tensor,
    ignore_label: int,
    pos_weight: Tensor | None = None,
    class_weights: Tensor | None = None,
    gamma: float = 0.0,
    gradient: bool = False,
) -> Tensor:
    """Compute losses [P], summed over labels, 0 where ignored; overwrites `logits` [P, K], as `_pixel_losses` does.

    With z the logit, negated where the label is absent, p = sigmoid(z), q = 1 - p and g = gamma, a label's loss is
    -w q^g log p, and its gradient by z is -w q^g (q - g p log p).
    """
    bits = labels.int()  # torch has no arithmetic for uint16
    keep = bits != ignore_label
    shifts = torch.arange(logits.shape[1], dtype=torch.int32, device=labels.device)
    present = (bits.masked_fill(~keep, 0)[:, None] >> shifts) & 1
    sign = present.to(logits.dtype).mul_(2).sub_(1)
    factor = keep[:, None].to(logits.dtype)
    if class_weights is not None:
        factor = factor * class_weights
    if pos_weight is not None:
        factor = factor * torch.where(present.bool(), pos_weight, 1)
    z = logits.masked_fill_(~keep[:, None], 0).mul_(sign)
    log_p, q = F.logsigmoid(z), torch.sigmoid(-z)
    if gamma:
        factor = factor * q**gamma
    losses = -(factor * log_p).sum(1)
    if gradient:
        slope = q.addcmul(torch.sigmoid(z), log_p, value=-gamma) if gamma else q
        torch.mul(sign.neg_(), factor * slope, out=logits)
    return losses


def _coarse_rows(gradient: Tensor, plan: _Plan, chunk: _Chunk, w: int) -> Tensor:
    """Reduce the gradient of a chunk [n, R, W, K] to the coarse rows of its span, [n, ., w, K]."""
    images, rows, _, classes = gradient.shape
    if plan.matrix is not None:
        gradient = _product(plan.matrix.T, gradient.flatten(0, 1)).unflatten(0, (images, rows))
    elif plan.horizontal is not None:
        narrow = gradient.new_zeros(images, rows, w, classes)
        plan.horizontal.add_back(narrow, gradient, 2)
        gradient = narrow
    if plan.vertical is None:
        return gradient
    span = plan.spans[chunk[1].start]
    low, high, mix = plan.vertical.part(chunk[1])
    axis = _Axis(low - span.start, high - span.start, mix)
    if plan.products:
        return _product(axis.matrix(span.stop - span.start).T, gradient)
    coarse = gradient.new_zeros(images, span.stop - span.start, w, classes)
    axis.add_back(coarse, gradient, 1)
    return coarse


@_summed_loss.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    smoothing: float,
    align_corners: bool,
    rows: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_results(logits, needs_gradient)


def _empty_results(logits: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return tensors like those of an operator, for tracing."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    n, classes, h, w = logits.shape
    if not needs_gradient:
        return logits.new_empty((), dtype=dtype), logits.new_empty(0, dtype=dtype)
    return logits.new_empty((), dtype=dtype), logits.new_empty((n, h, w, classes), dtype=dtype).permute(0, 3, 1, 2)


@torch.library.custom_op("resnest_seg::summed_binary_cross_entropy", mutates_args=())
def _summed_binary_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_label: int,
    pos_weight: Tensor | None,
    class_weights: Tensor | None,
    gamma: float,
    align_corners: bool,
    rows: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the summed loss and its gradient, as `_summed_loss` does."""
    with torch.autocast(logits.device.type, enabled=False):
        plan = _Plan.of(logits, labels, align_corners, rows)
        of_positives, of_all = (
            None if x is None else x.to(logits.device, plan.dtype) for x in (pos_weight, class_weights)
        )

        def losses(pixels: Tensor, part: Tensor) -> Tensor:
            return _label_losses(pixels, part, ignore_label, of_positives, of_all, gamma, needs_gradient)

        return _sum_of_chunks(logits.detach(), labels, plan, losses, ignore_label, needs_gradient)


@_summed_binary_loss.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    ignore_label: int,
    pos_weight: Tensor | None,
    class_weights: Tensor | None,
    gamma: float,
    align_corners: bool,
    rows: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_results(logits, needs_gradient)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype, ctx.inputs = inputs[0].dtype, len(inputs)


def _scale_gradient(ctx: Any, of_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    scaled = None if of_loss is None else (gradient * of_loss).to(ctx.dtype)
    return scaled, *[None] * (ctx.inputs - 1)


_summed_loss.register_autograd(_scale_gradient, setup_context=_keep_gradient)
_summed_binary_loss.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def _check_shapes(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None, pos_weight: Tensor | None = None
) -> None:
    if logits.dim() != 4 or labels.dim() != 3 or len(logits) != len(labels):
        raise ConfigError(
            f"logits [N, K, h, w] and labels [N, H, W] do not match: {list(logits.shape)} and {list(labels.shape)}."
        )
    classes = logits.shape[1]
    for name, weights in (("class weights", class_weights), ("pos_weight", pos_weight)):
        if weights is not None and weights.shape != (classes,):
            raise ConfigError(f"there are {classes} classes, but {name} of shape {list(weights.shape)}.")


def _check(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> None:
    _check_shapes(logits, labels, class_weights=class_weights)
    classes = logits.shape[1]
    if labels.device.type == "cpu" and labels.numel() and not _has_no_values(labels):
        outside = labels[(labels != IGNORE_LABEL) & ((labels < 0) | (labels >= classes))]
        if len(outside):
            raise DatasetError(
                f"a label is {int(outside[0])}, but the model has {classes} classes (0..{classes - 1}, and "
                f"{IGNORE_LABEL} for ignored pixels). `{command('check')}` finds the masks."
            )


def _check_bits(labels: Tensor, count: int, ignore_label: int) -> None:
    if 1 << count > ignore_label:
        raise ConfigError(
            f"{count} labels do not fit below the value {ignore_label} of ignored pixels: a binary task has one logit "
            f"and ignores {IGNORE_LABEL}, a multi-label task has 1..{MAX_LABELS} and ignores {MULTILABEL_IGNORE}."
        )
    if labels.device.type == "cpu" and labels.numel() and not _has_no_values(labels):
        bits = labels.int()  # torch has no arithmetic for uint16
        outside = bits[(bits != ignore_label) & ((bits < 0) | (bits >= 1 << count))]
        if len(outside):
            raise DatasetError(
                f"a label is {int(outside[0])}, but the model has {count} label(s) (0..{(1 << count) - 1}, and "
                f"{ignore_label} for ignored pixels). `{command('check')}` finds the masks."
            )


def _has_no_values(labels: Tensor) -> bool:
    """True while a graph is traced or memory is counted on fake tensors."""
    return torch.compiler.is_compiling() or isinstance(labels, FakeTensor)
