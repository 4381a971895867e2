"""Decoders as in the authors' code and as in mmsegmentation: features -> logits at feature stride.

`FCNHead` and `DeepLabV3Head` follow PyTorch-Encoding, the authors' segmentation code; the `MMSeg*` heads follow
mmsegmentation: they are wider, and resized without aligned corners. Module names follow the originals, so that their
state dicts load key by key. A head takes all features of an encoder, of which the last four are c1, c2, c3, c4.

Papers: Long et al., "Fully Convolutional Networks for Semantic Segmentation", https://arxiv.org/abs/1411.4038; Zhao et
al., "Pyramid Scene Parsing Network", https://arxiv.org/abs/1612.01105; Chen et al., "Rethinking Atrous Convolution for
Semantic Image Segmentation", https://arxiv.org/abs/1706.05587, and "Encoder-Decoder with Atrous Separable Convolution",
https://arxiv.org/abs/1802.02611.

Shapes: N batch, C channels, h x w feature pixels, H x W image pixels, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_seg.config import ModelConfig
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.models.mask2former import MASK2FORMER, PIXEL_DECODERS, Mask2FormerHead
from resnest_seg.models.resnest import SMP


def _conv_bn_relu(in_channels: int, channels: int, *, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, dropout, 1x1 convolution.

    Features -> logits [N, K, h, w] at the size of one stage.

    Args:
        in_channels: Channels of that stage.
        num_classes: K.
        stage: Index of that stage in the features: -1 is c4, -2 is c3.
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
    """Global average pooling and a 1x1 convolution, broadcast to all pixels: [N, C, H, W] -> [N, C', H, W]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(in_channels, channels, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        # Bilinear upsampling from one pixel is a copy of that pixel.
        pooled: Tensor = self.gap(features)
        return pooled.expand(-1, -1, *features.shape[2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: five parallel branches, concatenated and projected.

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
        output_stride: Input pixels per pixel of c4; the ASPP rates are 12, 24, 36 at output stride 8 and inversely
            proportional to it, so that the receptive field in the image is constant.
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
    """Mean over all pixels, dropout, one linear layer: features -> class scores before softmax [N, K].

    Args:
        in_channels: Channels of c4.
        num_classes: K.
        dropout: Probability of dropout.
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        scores: Tensor = self.fc(self.dropout(features[-1].mean(dim=(2, 3))))
        return scores


def aspp_rates(output_stride: int) -> tuple[int, int, int]:
    """Return the rates of the three 3x3 branches of an ASPP: 12, 24, 36 at output stride 8; 6, 12, 18 at 16."""
    unit = 12 * 8 // output_stride
    return unit, 2 * unit, 3 * unit


def resize_logits(logits: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Resize logits bilinearly to `size` (H, W): [N, K, h, w] -> [N, K, H, W].

    PyTorch-Encoding aligns the corners, mmsegmentation does not. A single pixel is expanded to a view, without a copy.
    """
    if logits.shape[2:] == (1, 1):
        return logits.expand(-1, -1, *size)
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


CHANNELS = 512
"""Channels of every main head of mmsegmentation."""


class ConvModule(nn.Module):
    """Convolution with "same" padding, batch norm, ReLU: [N, C, h, w] -> [N, C', h, w]."""

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, *, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(
            in_channels, channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activate(self.bn(self.conv(x)))
        return activated


class SeparableConvModule(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with norm and ReLU: [N, C, h, w] -> [N, C', h, w]."""

    def __init__(self, in_channels: int, channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(in_channels, in_channels, 3, dilation=dilation, groups=in_channels)
        self.pointwise_conv = ConvModule(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.pointwise_conv(self.depthwise_conv(x))
        return mixed


class MMSegHead(nn.Module, ABC):
    """Base of mmsegmentation's heads: dropout of whole channels and the 1x1 convolution to classes.

    Args:
        channels: Channels of `_decode`'s output.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.conv_seg(self.dropout(self._decode(features)))
        return logits

    @abstractmethod
    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        """Features -> [N, channels, h, w]."""


class MMSegFCNHead(MMSegHead):
    """Two 3x3 convolutions, concatenated with their input, and a third. Reads c4.

    Args:
        in_channels: Channels of c4.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(CHANNELS, num_classes)
        self.convs = nn.Sequential(ConvModule(in_channels, CHANNELS, 3), ConvModule(CHANNELS, CHANNELS, 3))
        self.conv_cat = ConvModule(in_channels + CHANNELS, CHANNELS, 3)

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        c4 = features[-1]
        decoded: Tensor = self.conv_cat(torch.cat([c4, self.convs(c4)], dim=1))
        return decoded


class MMSegAuxHead(MMSegHead):
    """One 3x3 convolution to 256 channels. Reads c3.

    Args:
        in_channels: Channels of c3.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(256, num_classes)
        self.convs = nn.Sequential(ConvModule(in_channels, 256, 3))

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        decoded: Tensor = self.convs(features[-2])
        return decoded


class MMSegPSPHead(MMSegHead):
    """Pyramid pooling to 1x1, 2x2, 3x3 and 6x6, concatenated with the features, and a 3x3 convolution. Reads c4.

    Args:
        in_channels: Channels of c4.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(CHANNELS, num_classes)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(parts), ConvModule(in_channels, CHANNELS, 1)) for parts in (1, 2, 3, 6)
        )
        self.bottleneck = ConvModule(in_channels + 4 * CHANNELS, CHANNELS, 3)

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        c4 = features[-1]
        means = [_resize(module(c4), c4) for module in self.psp_modules]
        decoded: Tensor = self.bottleneck(torch.cat([c4, *means], dim=1))
        return decoded


class MMSegDeepLabV3Head(MMSegHead):
    """ASPP (image pooling, 1x1 and three dilated 3x3 convolutions) and a 3x3 convolution. Reads c4.

    Args:
        in_channels: Channels of c4.
        num_classes: K.
        rates: Dilation rates of the 3x3 convolutions.
        separable: Make them depthwise separable.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, rates: tuple[int, int, int], separable: bool = False
    ) -> None:
        super().__init__(CHANNELS, num_classes)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(in_channels, CHANNELS, 1))
        views: list[nn.Module] = [ConvModule(in_channels, CHANNELS, 1)]
        for rate in rates:
            if separable:
                views.append(SeparableConvModule(in_channels, CHANNELS, dilation=rate))
            else:
                views.append(ConvModule(in_channels, CHANNELS, 3, dilation=rate))
        self.aspp_modules = nn.ModuleList(views)
        self.bottleneck = ConvModule(5 * CHANNELS, CHANNELS, 3)

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        c4 = features[-1]
        mean = self.image_pool(c4).expand(-1, -1, *c4.shape[2:])  # bilinear from one pixel is a copy of it
        decoded: Tensor = self.bottleneck(torch.cat([mean, *(view(c4) for view in self.aspp_modules)], dim=1))
        return decoded


class MMSegDeepLabV3PlusHead(MMSegDeepLabV3Head):
    """DeepLabV3 with separable convolutions, refined at the size of c1. Reads c1 and c4.

    Args:
        in_channels: Channels of c4.
        num_classes: K.
        low_channels: Channels of c1.
        rates: Dilation rates of the 3x3 convolutions.
    """

    def __init__(self, in_channels: int, num_classes: int, *, low_channels: int, rates: tuple[int, int, int]) -> None:
        super().__init__(in_channels, num_classes, rates=rates, separable=True)
        self.c1_bottleneck = ConvModule(low_channels, 48, 1)
        self.sep_bottleneck = nn.Sequential(
            SeparableConvModule(CHANNELS + 48, CHANNELS), SeparableConvModule(CHANNELS, CHANNELS)
        )

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        c1 = self.c1_bottleneck(features[-4])
        pyramid = _resize(super()._decode(features), c1)
        decoded: Tensor = self.sep_bottleneck(torch.cat([pyramid, c1], dim=1))
        return decoded


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of `like`, without aligned corners."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


HeadBuilder = Callable[[tuple[int, ...], int, int], nn.Module]
"""(channels of c1..c4, K, output stride) -> head."""

HEADS: dict[str, dict[str, HeadBuilder]] = {
    # family -> name -> head
    "encoding": {
        "fcn": lambda channels, classes, stride: FCNHead(channels[3], classes),
        "deeplabv3": lambda channels, classes, stride: DeepLabV3Head(channels[3], classes, output_stride=stride),
    },
    "mmseg": {
        "fcn": lambda channels, classes, stride: MMSegFCNHead(channels[3], classes),
        "pspnet": lambda channels, classes, stride: MMSegPSPHead(channels[3], classes),
        "deeplabv3": lambda channels, classes, stride: MMSegDeepLabV3Head(
            channels[3], classes, rates=aspp_rates(stride)
        ),
        "deeplabv3plus": lambda channels, classes, stride: MMSegDeepLabV3PlusHead(
            channels[3], classes, low_channels=channels[0], rates=aspp_rates(stride)
        ),
        MASK2FORMER: lambda channels, classes, stride: Mask2FormerHead(channels, classes),
    },
}

AUX_HEADS: dict[str, HeadBuilder] = {
    "encoding": lambda channels, classes, stride: FCNHead(channels[2], classes, stage=-2),
    "mmseg": lambda channels, classes, stride: MMSegAuxHead(channels[2], classes),
}


def check_head(model: ModelConfig) -> None:
    """Refuse a head that does not exist, or not in this family.

    Raises:
        ConfigError: Says which; the nearest name is named.
    """
    if model.head.startswith(SMP):
        from resnest_seg.models.smp import check_decoder_name

        check_decoder_name(model.head.removeprefix(SMP))
    elif model.head not in HEADS[model.family]:
        elsewhere = [family for family in HEADS if model.head in HEADS[family]]
        if elsewhere:
            raise ConfigError(f"head {model.head!r} exists in family {elsewhere[0]!r} only: set family to it.")
        from resnest_seg.models.smp import smp_decoder_like

        known = dict.fromkeys(name for heads in HEADS.values() for name in heads)
        raise unknown_name("head", model.head, [*known, f"{SMP}NAME"], meant=smp_decoder_like(model.head, known))
    if model.pixel_decoder not in PIXEL_DECODERS:
        raise unknown_name("pixel_decoder", model.pixel_decoder, PIXEL_DECODERS)
    if model.head == MASK2FORMER:
        wrong = {"output_stride": (model.output_stride, 32), "aux_head": (model.aux_head, False),
                 "task": (model.task, "multiclass")}  # fmt: skip
        for key, (value, needed) in wrong.items():
            if value != needed:
                raise ConfigError(f"head {MASK2FORMER} needs model.{key} {needed!r}, not {value!r}.")
    elif model.pixel_decoder != ModelConfig.pixel_decoder:
        raise ConfigError(f"pixel_decoder is a choice of head {MASK2FORMER}: head {model.head} has none.")


def head_for(model: ModelConfig, encoder: nn.Module, num_classes: int) -> nn.Module:
    """The main head that a config describes, for what an encoder returns.

    Raises:
        ConfigError: Unknown name, or a head that does not exist in this family or at this output stride.
    """
    check_head(model)
    if model.head.startswith(SMP):
        from resnest_seg.models.smp import build_smp_head

        assert isinstance(encoder.out_channels, list)
        name = model.head.removeprefix(SMP)
        return build_smp_head(name, encoder.out_channels, num_classes, output_stride=model.output_stride)
    if model.head == MASK2FORMER:
        return Mask2FormerHead(_channels(encoder), num_classes, pixel_decoder=model.pixel_decoder)
    return HEADS[model.family][model.head](_channels(encoder), num_classes, model.output_stride)


def aux_head_for(model: ModelConfig, encoder: nn.Module, num_classes: int) -> nn.Module | None:
    """The auxiliary head on c3 that a config describes, or None."""
    if not model.aux_head:
        return None
    return AUX_HEADS[model.family](_channels(encoder), num_classes, model.output_stride)


def sizes_taken(parts: Sequence[nn.Module]) -> tuple[int, int]:
    """What the sides of images must be multiples of, and at least be, for an encoder and heads together, in pixels.

    Args:
        parts: Of which `size_divisor` and `min_size` are read, if there are any.
    """
    divisor = math.lcm(*(getattr(part, "size_divisor", 1) for part in parts))
    smallest = max(getattr(part, "min_size", 1) for part in parts)
    return divisor, smallest + -smallest % divisor


def freeze_unread(encoder: nn.Module, heads: Sequence[nn.Module], *, in_channels: int) -> None:
    """Take the gradients from parameters that no head's output depends on, found by a small image of zeros.

    Encoders of SMP have such: parts of a classifier's last layers, and in HRNet the branches to levels that a head does
    not read. They would get no gradient, so no state of the optimiser that a run could be resumed with, and
    DistributedDataParallel would stop at the second step.

    Args:
        encoder: Normalised images [1, in_channels, S, S] -> features.
        heads: Features -> logits, each, or predictions of masks.
        in_channels: Channels of the images.
    """

    def summed(output: Tensor | Sequence[Any]) -> Tensor:
        return output.float().sum() if isinstance(output, Tensor) else torch.stack([*map(summed, output)]).sum()

    parts = [encoder, *heads]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    parameters = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    divisor, smallest = sizes_taken(parts)
    side = max(64, smallest)
    side += -side % divisor
    with torch.enable_grad():
        for part in parts:
            part.eval()
        like = next(parameter for part in parts for parameter in part.parameters())
        features = encoder(like.new_zeros(1, in_channels, side, side))
        total = summed([head(features) for head in heads])
        if total.requires_grad:  # not in inference mode, where nothing is trained
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.requires_grad_(gradient is not None)
    for module, training in modes:
        module.training = training


def _channels(encoder: nn.Module) -> tuple[int, ...]:
    assert isinstance(encoder.channels, tuple)
    return encoder.channels
