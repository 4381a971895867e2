"""Faster training on CPUs: memory that is not given back at every step, and gradients of weights as matrix products.

glibc gives tensors of more than 32 MiB back to the system when they are freed, and takes them from it again, zeroed
page by page, at the next step. `kept_memory` ends that.

oneDNN, the library beneath torch's convolutions, computes the gradient of the weights in channels-last memory much
slower than it convolves on many processors, and multiplies by the zeros of the padding: at rate 36, on features of
30 x 30 pixels, these are eight ninths of all. On others its own kernels are the faster ones, so the choice goes by the
processor. `docs/performance.md` has the figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]

MIN_CHANNELS = 64
"""Channels of a group, in and out, from which on the products are the faster way."""


def products_are_faster() -> bool:
    """True on processors where the matrix products were measured to beat oneDNN.

    These are x86 processors with AVX2 and no AVX-512 (1.3 to 1.5 times the speed of a training step), and those with
    AVX-512 and AMX tiles (1.1 times). With AVX-512 alone (Zen 5) they take 1.14 times the time. The environment
    variable ATEN_CPU_CAPABILITY, which limits the instructions that torch uses, is respected. The choice depends on the
    processor alone, not on a measurement, so that a resumed run computes the same bits as one that was left alone.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        return bool(torch.cpu.get_capabilities().get("amx_tile", False))
    return capability == "AVX2"


@contextlib.contextmanager
def faster_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context in which a model is trained: `kept_memory` if the device is a CPU, and `faster_weight_gradients`."""
    with kept_memory() if device.type == "cpu" else contextlib.nullcontext(), faster_weight_gradients(model):
        yield


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, the parameters of mallopt (malloc.h)."""

LARGEST_MMAP_THRESHOLD = 32 << 20
"""Bytes to which glibc itself raises the threshold, DEFAULT_MMAP_THRESHOLD_MAX; its trim threshold is twice as much."""


@contextlib.contextmanager
def kept_memory() -> Iterator[bool]:
    """Context in which the process keeps freed memory for what it allocates next; at its end it gives it back.

    The memory at its peak stays that of a step, within some percent. Settings of the user's own (MALLOC_... or
    glibc.malloc... in GLIBC_TUNABLES) are left alone, and so are systems without glibc.

    Yields:
        Whether the memory is kept.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if own or platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    if not libc.mallopt(MMAP_THRESHOLD, 2**31 - 1):  # which some versions of glibc refuse
        libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(TRIM_THRESHOLD, -1)
    try:
        yield True
    finally:
        libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(ctypes.c_size_t(0))


@contextlib.contextmanager
def faster_weight_gradients(model: nn.Module, *, enabled: bool | None = None) -> Iterator[int]:
    """Context in which a model's convolutions compute the gradient of their weights by `weight_gradient`.

    Parameters, outputs and names of modules are unchanged; gradients differ by rounding.

    Args:
        model: Its modules of class `nn.Conv2d`, not of derived classes, take part.
        enabled: False leaves the model alone; None chooses by `products_are_faster`.

    Yields:
        The number of convolutions that take part.
    """
    enabled = products_are_faster() if enabled is None else enabled
    changed = [module for module in model.modules() if type(module) is nn.Conv2d] if enabled else []
    for module in changed:
        module.__class__ = ProductConv2d
    try:
        yield len(changed)
    finally:
        for module in changed:
            module.__class__ = nn.Conv2d


class ProductConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with the same parameters, output and gradients, up to rounding.

    The matrix products are used for float32 in channels-last memory on a CPU, with stride 1 and zero padding, and only
    while gradients are recorded; not under autocast, in a compiled graph or an export.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._multiplies(x):
            return super().forward(x)
        assert not isinstance(self.padding, str)
        where = self.padding, self.dilation, self.groups
        out: Tensor = _Convolution.apply(x, self.weight, self.bias, *where)  # type: ignore[no-untyped-call]
        return out

    def _multiplies(self, x: Tensor) -> bool:
        """True where this input can take the matrix products."""
        return (
            torch.is_grad_enabled()
            and self.weight.requires_grad
            and type(x) is Tensor
            and x.ndim == 4
            and x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.is_contiguous(memory_format=torch.channels_last)
            and self.stride == (1, 1)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and min(self.in_channels, self.out_channels) // self.groups >= MIN_CHANNELS
            and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch._C._is_tracing())
        )


class _Convolution(torch.autograd.Function):
    """A convolution of stride 1 whose weights get their gradient from `weight_gradient`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, dilation: Pair, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, 1, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, *ctx.where = inputs
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        padding, dilation, groups = ctx.where
        needs = list(ctx.needs_input_grad[:3])
        own = needs[1] and not torch.is_grad_enabled()  # for a second derivative, torch's
        where = [1, 1], padding, dilation, False, [0, 0], groups
        wanted = [needs[0], needs[1] and not own, needs[2]]
        found = torch.ops.aten.convolution_backward(gradient, x, weight, ctx.bias_sizes, *where, wanted)
        inputs, weights, bias = (value if needed else None for value, needed in zip(found, wanted, strict=True))
        if own:
            weights = weight_gradient(gradient, x, weight.shape, padding=padding, dilation=dilation, groups=groups)
        return inputs, weights, bias, None, None, None


def weight_gradient(
    gradient: Tensor, x: Tensor, shape: torch.Size, *, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Compute the gradient of the weights of a convolution of stride 1, tap by tap.

    A tap of the kernel meets a rectangle of the input; outside of it there is padding. Its gradient is one product of
    matrices over the pixels of that rectangle: [C', pixels] x [pixels, C] for each group.

    Args:
        gradient: Gradient of the output, [N, C', h, w].
        x: The input, [N, C, H, W].
        shape: Shape of the weights: C', C / groups, rows, columns.
        padding: Rows and columns of zeros on each side.
        dilation: Rows and columns from tap to tap.
        groups: Groups of the channels.

    Returns:
        A tensor of that shape, in channels-last memory.
    """
    channels, depth, rows, columns = shape
    found = x.new_empty(channels, rows, columns, depth)
    if rows == 1 and padding[0] == 0:
        gradient, x = _one_image(gradient), _one_image(x)  # whose rows need not be brought together
    for column in range(columns):
        left, right = _meeting(column * dilation[1] - padding[1], gradient.shape[3], x.shape[3])
        outputs, inputs = _by_rows(gradient[..., left]), _by_rows(x[..., right])
        for row in range(rows):
            above, below = _meeting(row * dilation[0] - padding[0], gradient.shape[2], x.shape[2])
            for target, ours, theirs in zip(
                found[:, row, column].chunk(groups),
                outputs[above].flatten(0, 1).chunk(groups, 1),
                inputs[below].flatten(0, 1).chunk(groups, 1),
                strict=True,
            ):
                torch.mm(ours.t(), theirs, out=target)
    return found.permute(0, 3, 1, 2)


def _meeting(shift: int, outputs: int, inputs: int) -> tuple[slice, slice]:
    """Return, along one axis, the slice of outputs that read an input at their index + shift, and those inputs."""
    start = max(0, -shift)
    stop = max(start, min(outputs, inputs - shift))
    return slice(start, stop), slice(start + shift, stop + shift)


def _one_image(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [1, C, N * H, W], the images below each other; a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(0, 1)[None].permute(0, 3, 1, 2)


def _by_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [H, N * W, C], of which any rows together are one matrix; a view for one image's whole rows."""
    return x.permute(2, 0, 3, 1).flatten(1, 2)
