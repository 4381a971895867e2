"""Decoders in the authors' form: features to logits at feature stride.

`FCNHead` and `DeepLabV3Head` are built as in PyTorch-Encoding, the authors' segmentation code, with its module names,
so that its state dicts load key by key. A head reads what it needs of an encoder's features, whose last four are c1,
c2, c3, c4. mmsegmentation's form is in `resnest_seg.heads_mmseg`.

Papers: Long et al., "Fully Convolutional Networks for Semantic Segmentation",
https://arxiv.org/abs/1411.4038; Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation",
https://arxiv.org/abs/1706.05587.

Shapes: N batch, C channels, h x w feature pixels, H x W image pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv_bn_relu(in_channels: int, channels: int, *, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, dropout, 1x1 convolution.

    Features -> logits [N, K, h, w] of the stage that is read.

    Args:
        in_channels: Channels of that stage.
        num_classes: K.
        stage: Its place in the features: -1 is c4, -2 is c3.
    """

    def __init__(self, in_channels: int, num_classes: int, *, stage: int = -1) -> None:
        super().__init__()
        channels, self.stage = in_channels // 4, stage
        self.conv5 = nn.Sequential(
            *_conv_bn_relu(in_channels, channels, kernel_size=3),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, kernel_size=1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.conv5(features[self.stage])
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
    """ASPP, a 3x3 convolution, dropout, 1x1 convolution: features -> logits [N, K, h, w] of c4.

    Args:
        in_channels: Channels of c4.
        num_classes: K.
        output_stride: Input pixels per pixel of c4; the ASPP rates 12, 24, 36 are those of output stride 8 and
            shrink as it grows, so that they span the same part of the image.
    """

    def __init__(self, in_channels: int, num_classes: int, *, output_stride: int = 8) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, rates=aspp_rates(output_stride))
        channels = self.aspp.channels
        self.block = nn.Sequential(
            *_conv_bn_relu(channels, channels, kernel_size=3),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, kernel_size=1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.block(self.aspp(features[-1]))
        return logits


class ClassifierHead(nn.Module):
    """Mean over all pixels, one linear layer: features -> logits [N, K, 1, 1].

    With it a `Segmenter` is an image classifier: one answer for the whole image. It reads the classifiers that the
    encoders were pre-trained with.

    Args:
        in_channels: Channels of c4.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)  # training sets its probability
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.fc(self.dropout(features[-1].mean(dim=(2, 3))))
        return logits[..., None, None]


def aspp_rates(output_stride: int) -> tuple[int, int, int]:
    """Dilation rates of the three 3x3 branches of an ASPP: 12, 24, 36 at output stride 8, 6, 12, 18 at 16."""
    unit = 12 * 8 // output_stride
    return unit, 2 * unit, 3 * unit


def resize_logits(logits: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Bilinear to `size` (H, W): [N, K, h, w] -> [N, K, H, W].

    PyTorch-Encoding aligns the corners, mmsegmentation does not. One pixel becomes a view of itself, without a copy.
    """
    if logits.shape[2:] == (1, 1):
        return logits.expand(-1, -1, *size)
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
