"""Folding batch norms into convolutions for inference, with the same outputs.

Pairs of convolution and norm are not guessed from names or from the order of modules: a forward pass of a small image
shows which module reads the output of which. That works for every network. Another pass verifies that the outputs are
unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnest_seg.errors import ExportError

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Precision -> largest difference of outputs that rounding explains, as a share of the largest output."""


def fuse_model(model: nn.Module, forward: Callable[[Tensor], Tensor], channels: int) -> None:
    """Optimise a model for inference in place: eval mode, no gradients, norms folded.

    Args:
        model: A model with parameters of one dtype, which is kept; weights are folded in float64 and rounded once.
        forward: Runs the model on images [N, channels, H, W] 0..255 and returns the output that must not change.
        channels: Channels of the images.

    Raises:
        ExportError: The output changed by more than rounding explains. The model must not be used then.
    """
    parameter = next(model.parameters())
    dtype, device = parameter.dtype, parameter.device
    # Checked in float64: in float32, rounding in many layers may add up to 1e-3. Apple's GPUs have no float64.
    exact = torch.float32 if device.type == "mps" else torch.float64
    model.eval().requires_grad_(False).to(exact)
    images = 255 * torch.rand(1, channels, 72, 88, generator=torch.Generator().manual_seed(0)).to(device, exact)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _unchanged(lambda: forward(images)):
        fold_batch_norms(model, lambda: forward(images))
        convert_conv2d_weight_memory_format(model, torch.channels_last)
    model.to(dtype)


@torch.no_grad()
def fold_batch_norms(model: nn.Module, forward: Callable[[], object]) -> int:
    """Fold every batch norm that directly follows a convolution into it, in place.

    Folded norms become `nn.Identity`. A norm is kept if there is an operation between it and its convolution (a
    rectified convolution multiplies by a map), if another module reads the convolution's output, if one of the two runs
    twice, or if either is of a subclass of torch's class, which may do more.

    Args:
        model: A model in eval mode.
        forward: Runs the model on a small image.

    Returns:
        The number of batch norms that were folded.
    """
    assert not any(module.training for module in model.modules())
    with _watched(model) as watch:
        forward()
    pairs = watch.pairs()
    names = {module: name for name, module in model.named_modules()}
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        model.set_submodule(names[norm], nn.Identity().eval())
    return len(pairs)


@contextlib.contextmanager
def _unchanged(forward: Callable[[], Tensor]) -> Iterator[None]:
    """Context that verifies that changes to a model within it do not change its output.

    Raises:
        ExportError: The output changed by more than rounding explains; the message gives the difference.
    """
    before = forward().clone()
    yield
    error, tolerance = _difference(forward(), before), TOLERANCE[before.dtype]
    if not error <= tolerance:
        raise ExportError(
            f"fusing changed the model's output by {error:.2g} of its largest value, more than rounding explains "
            f"({tolerance:g}). This model has to be used without fuse()."
        )


def _difference(now: Tensor, before: Tensor) -> float:
    """Return the largest difference as a share of the largest value before; infinite if finiteness changed."""
    finite = before.isfinite()
    if not torch.equal(finite, now.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    return float((now - before)[finite].abs().max() / before[finite].abs().max().clamp_min(1e-12))


@dataclasses.dataclass
class _Output:
    """The output of one call of a convolution, and its readers."""

    conv: nn.Conv2d
    tensor: Tensor  # kept alive, so that no other gets its id
    readers: int = 0
    norm: nn.BatchNorm2d | None = None


class _Watch(TorchDispatchMode):
    """Context that records the readers of convolutions' outputs; `sees` and `came_out` are hooks of modules."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: dict[int, _Output] = {}
        self.calls: dict[nn.Module, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Have torch not load its compiler for this class, which takes more than a second of every start."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: object = None
    ) -> object:
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.outputs:
                self.outputs[id(value)].readers += 1
        assert isinstance(kwargs, Mapping | None)
        return func(*args, **(kwargs or {}))

    def came_out(self, conv: nn.Module, inputs: object, output: Tensor) -> None:
        """Record the output of a convolution."""
        assert isinstance(conv, nn.Conv2d)
        self.calls[conv] = self.calls.get(conv, 0) + 1
        self.outputs[id(output)] = _Output(conv, output)

    def sees(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Record that a batch norm is about to read its input."""
        assert isinstance(norm, nn.BatchNorm2d)
        self.calls[norm] = self.calls.get(norm, 0) + 1
        if id(inputs[0]) in self.outputs:
            self.outputs[id(inputs[0])].norm = norm

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Return pairs of a convolution and the batch norm that is the only reader of its output."""
        return [
            (output.conv, output.norm)
            for output in self.outputs.values()
            if output.norm is not None and output.readers == self.calls[output.conv] == self.calls[output.norm] == 1
        ]


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[_Watch]:
    """Context that records the forward passes of a model."""
    with _Watch() as watch, contextlib.ExitStack() as hooks:
        for module in model.modules():
            if type(module) is nn.Conv2d:
                hooks.callback(module.register_forward_hook(watch.came_out).remove)
            elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
                hooks.callback(module.register_forward_pre_hook(watch.sees).remove)
        yield watch
