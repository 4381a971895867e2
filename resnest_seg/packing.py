"""Convolutions for inference on a CPU: weights laid out once, ReLU and shortcut within the convolution's own pass.

oneDNN, the library beneath torch's convolutions, keeps weights in an order of its own and brings them into it at every
call. Here it is done once. It can also add another tensor and apply ReLU to each result while that is still in a
register. Where that way is not open (a GPU, gradients, autocast, an export, a build without oneDNN), the same module
computes the same by plain operations.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class _Pack:
    """A weight in oneDNN's order, and what it was made of."""

    weight: Tensor
    source: tuple[object, ...]


class PackedConv2d(nn.Conv2d):
    """A convolution, optionally with ReLU, that shares the parameters of the one it is made of.

    [N, C, H, W] -> [N, C', H', W']. `add`, a tensor of the result's shape that nobody needs afterwards, is added to the
    result before ReLU; it may be overwritten, and may be what is returned.

    The packed weight is made by the first call and whenever the parameters have changed; it doubles the memory that a
    weight takes, and is neither copied nor saved.

    Args:
        conv: Of torch's own class, with zero padding.

    Attributes:
        relu: End with ReLU.
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
        """Whether the packed way is open for this input."""
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
    """Whether oneDNN multiplies bfloat16 on this processor; the packed way would refuse otherwise."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def packable(module: nn.Module) -> bool:
    """Whether a module is a convolution that `PackedConv2d` can stand for."""
    return is_convolution(module) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def is_convolution(module: nn.Module) -> bool:
    """True for `nn.Conv2d` itself; a derived class may compute something else."""
    return type(module) is nn.Conv2d
