"""Folding batch norms into convolutions for inference, with the same outputs.

Which norm follows which convolution is not guessed from names or from the order of modules: one forward pass of a small
image shows which module reads the output of which. That works for every network, ours or not. Another pass proves that
the outputs have stayed the same.
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
"""Precision -> the largest difference of outputs, as a share of the largest output, that rounding may explain."""


def fuse_model(model: nn.Module, forward: Callable[[Tensor], Tensor], channels: int) -> None:
    """Make a model a faster one for inference, in place: eval mode, no gradients, norms folded.

    Args:
        model: Of one precision, which it keeps; weights are folded in float64 and rounded once.
        forward: Runs the model on images [N, channels, H, W] 0..255 and returns what must not change.
        channels: Of the images.

    Raises:
        ExportError: The output changed by more than rounding explains; says how much. The model is then of no use.
    """
    parameter = next(model.parameters())
    dtype, device = parameter.dtype, parameter.device
    # In float32, networks may differ from themselves by 1e-3 after many layers of rounding; Apple's GPUs have no more.
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

    All of these become `nn.Identity`. A norm stays where something stands between it and its convolution (a rectified
    convolution multiplies by a map), where somebody else reads the convolution's output as well, where one of the two
    runs twice, and where either is of a class derived from torch's, which may do more.

    Args:
        model: In eval mode.
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
    """What happens to a model within this context does not change its output.

    Raises:
        ExportError: It did, by more than rounding explains; says how much. The model is then of no use.
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
    """Largest difference as a share of the largest value before; infinite where other values are finite than before."""
    finite = before.isfinite()
    if not torch.equal(finite, now.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    return float((now - before)[finite].abs().max() / before[finite].abs().max().clamp_min(1e-12))


@dataclasses.dataclass
class _Output:
    """What came out of one call of a convolution, and who has read it."""

    conv: nn.Conv2d
    tensor: Tensor  # kept alive, so that no other gets its id
    readers: int = 0
    norm: nn.BatchNorm2d | None = None


class _Watch(TorchDispatchMode):
    """Within this context, notes who reads the outputs of convolutions; `sees` and `came_out` are hooks of modules."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: dict[int, _Output] = {}
        self.calls: dict[nn.Module, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: object = None
    ) -> object:
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.outputs:
                self.outputs[id(value)].readers += 1
        assert isinstance(kwargs, Mapping | None)
        return func(*args, **(kwargs or {}))

    def came_out(self, conv: nn.Module, inputs: object, output: Tensor) -> None:
        """A convolution has run."""
        assert isinstance(conv, nn.Conv2d)
        self.calls[conv] = self.calls.get(conv, 0) + 1
        self.outputs[id(output)] = _Output(conv, output)

    def sees(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A batch norm is about to run."""
        assert isinstance(norm, nn.BatchNorm2d)
        self.calls[norm] = self.calls.get(norm, 0) + 1
        if id(inputs[0]) in self.outputs:
            self.outputs[id(inputs[0])].norm = norm

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Convolutions and the batch norms that alone read their output."""
        return [
            (output.conv, output.norm)
            for output in self.outputs.values()
            if output.norm is not None and output.readers == self.calls[output.conv] == self.calls[output.norm] == 1
        ]


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[_Watch]:
    """Within this context, the forward passes of a model are watched."""
    with _Watch() as watch, contextlib.ExitStack() as hooks:
        for module in model.modules():
            if type(module) is nn.Conv2d:
                hooks.callback(module.register_forward_hook(watch.came_out).remove)
            elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
                hooks.callback(module.register_forward_pre_hook(watch.sees).remove)
        yield watch
