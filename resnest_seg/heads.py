"""Decoders: features of the last stage to logits at feature stride.

`FCNHead` and `DeepLabV3Head` are built as in PyTorch-Encoding, the authors' segmentation code, with its module names,
so that its state dicts load key by key. Papers: Long et al., "Fully Convolutional Networks for Semantic Segmentation",
https://arxiv.org/abs/1411.4038; Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation",
https://arxiv.org/abs/1706.05587.

Shapes: N batch, C channels, H x W feature pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_seg.errors import unknown_name


def _conv_bn_relu(in_channels: int, channels: int, *, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, dropout, 1x1 convolution: [N, C, H, W] -> [N, K, H, W]."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        channels = in_channels // 4
        self.conv5 = nn.Sequential(
            *_conv_bn_relu(in_channels, channels, kernel_size=3),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, kernel_size=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.conv5(features)
        return logits


class ImagePooling(nn.Module):
    """The mean over all pixels through a 1x1 convolution, spread over all pixels again."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(in_channels, channels, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        # Bilinear upsampling from one pixel is a copy of that pixel.
        pooled: Tensor = self.gap(features)
        return pooled.expand(-1, -1, *features.shape[2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: five views of the features, concatenated and projected.

    [N, C, H, W] -> [N, C / 8, H, W].

    Args:
        in_channels: C.
        rates: Dilation rates of the three 3x3 branches.
    """

    def __init__(self, in_channels: int, *, rates: tuple[int, int, int]) -> None:
        super().__init__()
        channels = in_channels // 8
        self.channels = channels
        self.b0 = _conv_bn_relu(in_channels, channels, kernel_size=1)
        self.b1 = _conv_bn_relu(in_channels, channels, kernel_size=3, dilation=rates[0])
        self.b2 = _conv_bn_relu(in_channels, channels, kernel_size=3, dilation=rates[1])
        self.b3 = _conv_bn_relu(in_channels, channels, kernel_size=3, dilation=rates[2])
        self.b4 = ImagePooling(in_channels, channels)
        self.project = nn.Sequential(*_conv_bn_relu(5 * channels, channels, kernel_size=1), nn.Dropout2d(0.5))

    def forward(self, features: Tensor) -> Tensor:
        views = [branch(features) for branch in (self.b0, self.b1, self.b2, self.b3, self.b4)]
        projected: Tensor = self.project(torch.cat(views, dim=1))
        return projected


class DeepLabV3Head(nn.Module):
    """ASPP, a 3x3 convolution, dropout, 1x1 convolution: [N, C, H, W] -> [N, K, H, W].

    Args:
        in_channels: C.
        num_classes: K.
        output_stride: Input pixels per feature pixel; the ASPP rates 12, 24, 36 are those of output stride 8 and
            shrink as it grows, so that they span the same part of the image.
    """

    def __init__(self, in_channels: int, num_classes: int, *, output_stride: int = 8) -> None:
        super().__init__()
        unit = 12 * 8 // output_stride
        self.aspp = ASPP(in_channels, rates=(unit, 2 * unit, 3 * unit))
        channels = self.aspp.channels
        self.block = nn.Sequential(
            *_conv_bn_relu(channels, channels, kernel_size=3),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, kernel_size=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.block(self.aspp(features))
        return logits


def _fcn(in_channels: int, num_classes: int, output_stride: int) -> nn.Module:
    return FCNHead(in_channels, num_classes)


def _deeplabv3(in_channels: int, num_classes: int, output_stride: int) -> nn.Module:
    return DeepLabV3Head(in_channels, num_classes, output_stride=output_stride)


HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {"fcn": _fcn, "deeplabv3": _deeplabv3}


def build_head(name: str, in_channels: int, num_classes: int, *, output_stride: int) -> nn.Module:
    """Build a head by name, with fresh weights.

    Raises:
        ConfigError: Unknown name.
    """
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    return HEADS[name](in_channels, num_classes, output_stride)


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to `size` (H, W) with aligned corners, as PyTorch-Encoding does: [N, K, h, w] -> [N, K, H, W]."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
