"""ResNeSt encoders with dilated stages, in one file from the spec to the network.

Paper: Zhang et al., "ResNeSt: Split-Attention Networks", https://arxiv.org/abs/2004.08955. Module names follow the
authors' code, so that their state dicts load key by key. A dilated ResNeSt is several different networks in the wild
that all load the same weights silently; `dilation` names the one that is meant:

    "encoding"   PyTorch-Encoding, the authors' segmentation code: the 3x3 average pool after split attention stays in
                 the first block of a dilated stage, with stride 1, and that block has half of the stage's rate

Shapes below: N batch, C channels, H x W pixels, R radix (splits), K cardinality (groups).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from resnest_seg.errors import ConfigError, unknown_name

EXPANSION = 4
"""Output channels of a bottleneck, per plane."""


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """What tells one encoder of the family from another.

    Attributes:
        depths: Bottlenecks in the four stages.
        stem_width: Channels of the first two stem convolutions; the third has twice as many.
        radix: Splits R that attention weighs.
        cardinality: Groups K within each split.
        bottleneck_width: Channels of a group in the first stage, per 64 planes.
        planes: Planes of the first stage; every later stage doubles them. 64 in all published networks.
    """

    depths: tuple[int, int, int, int]
    stem_width: int = 32
    radix: int = 2
    cardinality: int = 1
    bottleneck_width: int = 64
    planes: int = 64


SPECS: dict[str, EncoderSpec] = {
    "resnest14_tiny": EncoderSpec((1, 1, 1, 1), stem_width=8, planes=8),  # ours, an eighth as wide: demos and tests
    "resnest14": EncoderSpec((1, 1, 1, 1)),
    "resnest26": EncoderSpec((2, 2, 2, 2)),
    "resnest50": EncoderSpec((3, 4, 6, 3)),
    "resnest101": EncoderSpec((3, 4, 23, 3), stem_width=64),
    "resnest200": EncoderSpec((3, 24, 36, 3), stem_width=64),
    "resnest269": EncoderSpec((3, 30, 48, 8), stem_width=64),
}

DILATIONS: tuple[str, ...] = ("encoding",)

STAGE_STRIDES_AND_RATES: dict[int, tuple[tuple[int, int], ...]] = {
    # output stride -> (stride, dilation rate) of the four stages
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}


class SplitAttention(nn.Module):
    """3x3 convolution into R splits, and their sum weighted by attention over the splits (radix-major layout).

    [N, in_channels, H, W] -> [N, channels, H, W]. Matches `SplAtConv2d` of the authors' code.
    """

    def __init__(self, in_channels: int, channels: int, *, dilation: int, cardinality: int, radix: int) -> None:
        super().__init__()
        attention_channels = max(in_channels * radix // 4, 32)
        self.radix, self.cardinality = radix, cardinality
        self.conv = nn.Conv2d(
            in_channels,
            channels * radix,
            kernel_size=3,
            padding=dilation,
            dilation=dilation,
            groups=cardinality * radix,
            bias=False,
        )
        self.bn0 = nn.BatchNorm2d(channels * radix)
        self.fc1 = nn.Conv2d(channels, attention_channels, kernel_size=1, groups=cardinality)
        self.bn1 = nn.BatchNorm2d(attention_channels)
        self.fc2 = nn.Conv2d(attention_channels, channels * radix, kernel_size=1, groups=cardinality)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.relu(self.bn0(self.conv(x)))
        batch, channels, height, width = features.shape
        splits = features.view(batch, self.radix, channels // self.radix, height, width)  # [N, R, C, H, W]
        # The mean over pixels comes before the sum over splits: the same number, and one pass less over H x W.
        pooled = splits.mean(dim=(3, 4)).sum(dim=1)[..., None, None]  # [N, C, 1, 1]
        scores = self.fc2(self.relu(self.bn1(self.fc1(pooled))))  # [N, C * R, 1, 1], cardinality-major
        weights = self._over_splits(scores)  # [N, R, C, 1, 1]
        return (splits * weights).sum(dim=1)

    def _over_splits(self, scores: Tensor) -> Tensor:
        by_group = scores.reshape(len(scores), self.cardinality, self.radix, -1).transpose(1, 2)  # [N, R, K, C / K]
        weights = by_group.softmax(dim=1) if self.radix > 1 else by_group.sigmoid()
        return weights.flatten(2)[..., None, None]


class Bottleneck(nn.Module):
    """1x1 -> split attention (and average pool) -> 1x1, plus the shortcut.

    [N, in_channels, H, W] -> [N, planes * EXPANSION, H / stride, W / stride], rounded up.

    Args:
        stride: Spatial stride; it lives in the average pool after split attention, not in a convolution.
        dilation: Rate of the 3x3 convolution.
        pool: Put the 3x3 average pool after split attention; a stride needs it.
        project: Put average pool, 1x1 convolution and norm on the shortcut.
    """

    def __init__(
        self, in_channels: int, planes: int, *, spec: EncoderSpec, stride: int, dilation: int, pool: bool, project: bool
    ) -> None:
        super().__init__()
        assert pool or stride == 1
        width = planes * spec.bottleneck_width // 64 * spec.cardinality
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width, width, dilation=dilation, cardinality=spec.cardinality, radix=spec.radix)
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if pool else nn.Identity()
        self.conv3 = nn.Conv2d(width, planes * EXPANSION, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if project:
            self.downsample = nn.Sequential(
                # At stride 1 this is the identity; it stays because the keys below count from it.
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(in_channels, planes * EXPANSION, kernel_size=1, bias=False),
                nn.BatchNorm2d(planes * EXPANSION),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.avd_layer(self.conv2(out))
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class ResNeSt(nn.Module):
    """A ResNeSt without its classifier: images to the features of four stages.

    Normalised images [N, 3, H, W] -> (c1, c2, c3, c4) with `channels` channels at strides 4, 8 and, for c3 and c4,
    min(16, output_stride) and output_stride. Any H, W >= 1; sizes round up at every stride.

    Args:
        spec: The family member.
        output_stride: 8, 16 or 32 input pixels per step of c4.
        dilation: Which dilated network is meant, see the module's docstring.
    """

    def __init__(self, spec: EncoderSpec, *, output_stride: int, dilation: str) -> None:
        super().__init__()
        if output_stride not in STAGE_STRIDES_AND_RATES:
            raise ConfigError(f"output_stride must be one of {list(STAGE_STRIDES_AND_RATES)}, not {output_stride}.")
        if dilation not in DILATIONS:
            raise unknown_name("dilation", dilation, DILATIONS)
        self.output_stride, self.dilation = output_stride, dilation
        self.channels = tuple(spec.planes * 2**stage * EXPANSION for stage in range(4))
        self.conv1 = _deep_stem(spec.stem_width)
        self.bn1 = nn.BatchNorm2d(2 * spec.stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels, stages = 2 * spec.stem_width, []
        for stage, (stride, rate) in enumerate(STAGE_STRIDES_AND_RATES[output_stride]):
            planes = spec.planes * 2**stage
            blocks = _stage(
                in_channels, planes, spec=spec, depth=spec.depths[stage], stride=stride, rate=rate, first=stage == 0
            )
            stages.append(blocks)
            in_channels = planes * EXPANSION
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c1 = self.layer1(x)
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        c4 = self.layer4(c3)
        return c1, c2, c3, c4


def build_encoder(name: str, *, output_stride: int, dilation: str) -> ResNeSt:
    """Build an encoder of the family by name, with fresh weights.

    Raises:
        ConfigError: Unknown name, output stride or dilation variant.
    """
    if name not in SPECS:
        raise unknown_name("encoder", name, SPECS)
    return ResNeSt(SPECS[name], output_stride=output_stride, dilation=dilation)


def _deep_stem(width: int) -> nn.Sequential:
    """Three 3x3 convolutions instead of one 7x7; [N, 3, H, W] -> [N, 2 * width, H / 2, W / 2]."""
    return nn.Sequential(
        nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 2 * width, kernel_size=3, padding=1, bias=False),
    )


def _stage(
    in_channels: int, planes: int, *, spec: EncoderSpec, depth: int, stride: int, rate: int, first: bool
) -> nn.Sequential:
    blocks = []
    for block in range(depth):
        opening = block == 0
        blocks.append(
            Bottleneck(
                in_channels if opening else planes * EXPANSION,
                planes,
                spec=spec,
                stride=stride if opening else 1,
                dilation=max(rate // 2, 1) if opening else rate,
                # All stages but the first open with a pool; the "encoding" variant keeps it where the stride is 1.
                pool=opening and not first,
                project=opening,
            )
        )
    return nn.Sequential(*blocks)


@torch.no_grad()
def _init_weights(module: nn.Module) -> None:
    """Normal weights with variance 2 / (kernel area * output channels), as in the authors' code."""
    if isinstance(module, nn.Conv2d):
        area = math.prod(module.kernel_size)
        module.weight.normal_(0, math.sqrt(2.0 / (area * module.out_channels)))
