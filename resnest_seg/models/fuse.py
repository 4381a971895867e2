"""Folding batch norms into convolutions for inference, with the same outputs.

Pairs of convolution and norm are not guessed from names or from the order of modules: a forward pass of a small image
shows which module reads the output of which. That works for every network. Another pass verifies that the outputs are
unchanged.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnest_seg.errors import ExportError
from resnest_seg.models.heads import ConvModule
from resnest_seg.models.resnest import Bottleneck, ResNeSt, SplitAttention


@dataclasses.dataclass(frozen=True)
class _Pack:
    """A weight in oneDNN's layout, and the parameters that it was made from."""

    weight: Tensor
    source: tuple[object, ...]


class PackedConv2d(nn.Conv2d):
    """A convolution, optionally with ReLU, that shares the parameters of the original.

    [N, C, H, W] -> [N, C', H', W']. `add`, a tensor of the output's shape, is added before ReLU; it may be overwritten
    and returned.

    The packed weight is made by the first call and whenever the parameters change; it doubles the memory of the weight
    and is neither copied nor saved.

    Args:
        conv: An `nn.Conv2d`, not of a subclass, with zero padding.

    Attributes:
        relu: Apply ReLU to the output.
    """

    relu = False
    _pack: _Pack | None = None

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if not self._packs(x):
            out = super().forward(x)
            if add is not None:
                out = out.add_(add)
            return out.relu_() if self.relu else out
        weight, where = self._packed(x), (self.padding, self.stride, self.dilation, self.groups)
        result: Tensor
        if add is None:
            relu = "relu" if self.relu else "none"
            result = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *where, relu, [], "")
        else:
            result = torch.ops.mkldnn._convolution_pointwise_.binary(
                add, x, weight, self.bias, *where, "add", 1.0, "relu" if self.relu else None, [], None
            )
        return result

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_pack"}

    def _packs(self, x: Tensor) -> bool:
        """True if the packed weight can be used for this input."""
        return (
            type(x) is Tensor
            and x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _has_bfloat16()))
            and x.numel() > 0
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch._C._is_tracing())
            and torch.backends.mkldnn.is_available()
            and bool(torch.backends.mkldnn.enabled)
        )

    def _packed(self, x: Tensor) -> Tensor:
        weight = self.weight.detach()
        version = -1 if weight.is_inference() else weight._version
        source = (weight.data_ptr(), version, weight.dtype)
        if self._pack is None or self._pack.source != source:
            pack = torch.ops.aten.mkldnn_reorder_conv2d_weight
            where = (self.padding, self.stride, self.dilation, self.groups)
            self._pack = _Pack(pack(weight.contiguous().to_mkldnn(), *where, list(x.shape)), source)
        return self._pack.weight


def _has_bfloat16() -> bool:
    """True if oneDNN supports bfloat16 on this processor; packed convolutions would raise otherwise."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def packable(module: nn.Module) -> bool:
    """True if `PackedConv2d` can replace the module."""
    return is_convolution(module) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def is_convolution(module: nn.Module) -> bool:
    """True for `nn.Conv2d` itself; a subclass may compute something else."""
    return type(module) is nn.Conv2d


TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Precision -> largest difference of outputs that rounding explains, as a share of the largest output."""


def fuse_model(model: nn.Module, forward: Callable[[Tensor], Tensor], channels: int) -> None:
    """Optimise a model for inference in place: eval mode, no gradients, norms folded, convolutions packed.

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
        pack_convolutions(model)
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


class FusedBottleneck(Bottleneck):
    """`Bottleneck` with folded norms, whose convolutions apply ReLU and add the shortcut.

    An identity shortcut overwrites the block's input; the features that an encoder returns are safe, because the first
    block of each stage has a convolution in its shortcut.
    """

    def __init__(self, block: Bottleneck) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        out = self.avd_last(self.conv2(self.avd_first(self.conv1(x))))
        activated: Tensor = self.conv3(out, self.downsample(x))
        return activated


def pack_convolutions(model: nn.Module) -> None:
    """Replace convolutions by `PackedConv2d`, which also applies the ReLU that is known to follow.

    Args:
        model: A model in eval mode with folded batch norms.
    """
    for name, module in list(model.named_modules()):
        if packable(module):
            assert isinstance(module, nn.Conv2d)
            model.set_submodule(name, PackedConv2d(module))
    times = collections.Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Sequential | ConvModule):
            _absorb(module, {child for child in module.children() if times[child] == 1})
        elif isinstance(module, SplitAttention):
            if _take_relu(module.conv, module.bn0) and _take_relu(module.fc1, module.bn1):
                module.set_submodule("relu", nn.Identity())
        elif isinstance(module, ResNeSt):
            last = module.conv1[-1] if isinstance(module.conv1, nn.Sequential) else module.conv1
            if _take_relu(last, module.bn1):
                module.set_submodule("relu", nn.Identity())
        elif isinstance(module, Bottleneck):
            if isinstance(module.act2, nn.ReLU) and _take_relu(module.conv2, module.bn2):
                module.act2 = nn.Identity()
            if _take_relu(module.conv1, module.bn1) and _take_relu(module.conv3, module.bn3):
                model.set_submodule(name, FusedBottleneck(module))


def _take_relu(conv: nn.Module, norm: nn.Module) -> bool:
    """Absorb the ReLU after a convolution and its norm into the convolution; False if that is not possible."""
    if not (isinstance(conv, PackedConv2d) and isinstance(norm, nn.Identity)):
        return False
    conv.relu = True
    return True


def _absorb(sequence: nn.Module, once: Collection[nn.Module]) -> None:
    """Absorb the ReLUs of a sequence into the convolutions before them, if both occur `once` in the model."""
    last: nn.Module | None = None
    for name, child in list(sequence.named_children()):
        if type(child) is nn.ReLU and isinstance(last, PackedConv2d) and {last, child} <= set(once):
            last.relu = True
            setattr(sequence, name, nn.Identity())
        elif not isinstance(child, nn.Identity):
            last = child


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
            if is_convolution(module):
                hooks.callback(module.register_forward_hook(watch.came_out).remove)
            elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
                hooks.callback(module.register_forward_pre_hook(watch.sees).remove)
        yield watch
