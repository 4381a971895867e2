"""Convolutions that know where their zero padding begins (the option `rectify` of the authors' code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

RECTIFICATIONS: tuple[str, ...] = ("none", "rectify", "rectify_avg")


class RectifiedConv2d(nn.Conv2d):
    """A convolution without bias whose output is corrected for the taps that its zero padding wastes.

    [N, C, H, W] -> [N, C', H', W']; same parameters as `nn.Conv2d`. Matches `RFConv2d` of PyTorch-Encoding.

    Args:
        average: Multiply by 1 / taps inside instead of taps / taps inside.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        average: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._taps_inside(x, dim) for dim in (0, 1))  # [H'], [W']
        taps = 1 if self.average else math.prod(self.kernel_size)
        out = super().forward(x)
        return out * (taps / (rows[:, None] * columns)).to(out.dtype)

    def _taps_inside(self, x: Tensor, dim: int) -> Tensor:
        """How many taps of each output row (dim 0) or column (dim 1) lie inside the image."""
        assert isinstance(self.padding, tuple)
        size, kernel, stride = x.shape[2 + dim], self.kernel_size[dim], self.stride[dim]
        padding, dilation = self.padding[dim], self.dilation[dim]
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        first = torch.arange(outputs, device=x.device) * stride - padding
        places = first[:, None] + torch.arange(kernel, device=x.device) * dilation
        return ((places >= 0) & (places < size)).sum(dim=1)


def padded_conv(
    in_channels: int,
    out_channels: int,
    *,
    rectify: str,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution whose padding keeps the size at stride 1, rectified if asked for."""
    padding = dilation * (kernel_size // 2)
    if rectify == "none":
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
    return RectifiedConv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        average=rectify == "rectify_avg",
    )
