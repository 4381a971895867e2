"""ResNeSt encoders with dilated stages, and the ResNets they derive from: from the spec to the network.

Papers: Zhang et al., "ResNeSt: Split-Attention Networks", https://arxiv.org/abs/2004.08955; He et al., "Deep Residual
Learning", https://arxiv.org/abs/1512.03385; Xie et al., "Aggregated Residual Transformations",
https://arxiv.org/abs/1611.05431. Module names follow the authors' code, so that state dicts load key by key.

"Dilated ResNeSt" means several networks in published code, and all of them load the same weights silently. They differ
in the first block of a stage whose stride became a dilation; `dilation` names the variant:

    variant      3x3 pool after split attention   shortcut before its 1x1 convolution   code of
    "encoding"   kept, with stride 1              identity                              PyTorch-Encoding (the authors)
    "mmseg"      dropped                          identity                              mmsegmentation, detectron2 ports
    "timm"       dropped                          2x2 mean with stride 1                timm, and so SMP's tu-resnest*

In all variants that block has half of the stage's rate, and at output stride 32 all equal the ImageNet network.

Shapes below: N batch, C channels, H x W pixels, R radix (splits), K cardinality (groups).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnest_seg.config import ModelConfig
from resnest_seg.errors import ConfigError, unknown_name

SMP = "smp:"
"""Prefix of the names of segmentation-models-pytorch's encoders and heads."""

EXPANSION = 4
"""Output channels of a bottleneck divided by its planes."""


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """The architecture of one encoder of the family.

    Attributes:
        depths: Number of bottlenecks in each of the four stages.
        deep_stem: Use three 3x3 convolutions instead of one 7x7.
        stem_width: Channels of the first two convolutions of a deep stem; the third has twice as many.
        radix: Number of splits R weighted by attention; 0 is a plain 3x3 convolution, the ResNet family.
        cardinality: Groups K within each split.
        bottleneck_width: Channels of a group in the first stage, per 64 planes.
        planes: Planes of the first stage, doubled by every later stage; 64 in all published networks.
        avg_down: Average pixels in a strided shortcut before its 1x1 convolution, instead of subsampling.
        pool_first: Put the strided 3x3 average pool of a block before split attention ("fast"), not after.
    """

    depths: tuple[int, int, int, int]
    deep_stem: bool = True
    stem_width: int = 32
    radix: int = 2
    cardinality: int = 1
    bottleneck_width: int = 64
    planes: int = 64
    avg_down: bool = True
    pool_first: bool = False


def _fast(radix: int, cardinality: int, width: int) -> EncoderSpec:
    return EncoderSpec((3, 4, 6, 3), radix=radix, cardinality=cardinality, bottleneck_width=width, pool_first=True)


def _resnet(
    depths: tuple[int, int, int, int], *, deep_stem: bool = False, cardinality: int = 1, width: int = 64
) -> EncoderSpec:
    return EncoderSpec(depths, deep_stem, 64, radix=0, cardinality=cardinality, bottleneck_width=width, avg_down=False)


SPECS: dict[str, EncoderSpec] = {
    "resnest14_tiny": EncoderSpec((1, 1, 1, 1), stem_width=8, planes=8),  # an eighth of the width, for demos and tests
    "resnest14": EncoderSpec((1, 1, 1, 1)),
    "resnest26": EncoderSpec((2, 2, 2, 2)),
    "resnest50": EncoderSpec((3, 4, 6, 3)),
    "resnest101": EncoderSpec((3, 4, 23, 3), stem_width=64),
    "resnest200": EncoderSpec((3, 24, 36, 3), stem_width=64),
    "resnest269": EncoderSpec((3, 30, 48, 8), stem_width=64),
    # The authors' ablations of ResNeSt-50, named radix s cardinality x width d.
    "resnest50_fast_1s1x64d": _fast(1, 1, 64),
    "resnest50_fast_2s1x64d": _fast(2, 1, 64),
    "resnest50_fast_4s1x64d": _fast(4, 1, 64),
    "resnest50_fast_1s2x40d": _fast(1, 2, 40),
    "resnest50_fast_2s2x40d": _fast(2, 2, 40),
    "resnest50_fast_4s2x40d": _fast(4, 2, 40),
    "resnest50_fast_1s4x24d": _fast(1, 4, 24),
    "resnet50": _resnet((3, 4, 6, 3)),
    "resnet101": _resnet((3, 4, 23, 3)),
    "resnet152": _resnet((3, 8, 36, 3)),
    # With the deep stem that the authors use for segmentation.
    "resnet50s": _resnet((3, 4, 6, 3), deep_stem=True),
    "resnet101s": _resnet((3, 4, 23, 3), deep_stem=True),
    "resnet152s": _resnet((3, 8, 36, 3), deep_stem=True),
    # With the narrower deep stem of mmsegmentation's ResNetV1c: its R-50-D8 and R-101-D8.
    "resnet50c": EncoderSpec((3, 4, 6, 3), radix=0, avg_down=False),
    "resnet101c": EncoderSpec((3, 4, 23, 3), radix=0, avg_down=False),
    "resnet50d": EncoderSpec((3, 4, 6, 3), radix=0),
    "resnext50_32x4d": _resnet((3, 4, 6, 3), cardinality=32, width=4),
    "resnext101_32x8d": _resnet((3, 4, 23, 3), cardinality=32, width=8),
}

DILATIONS: tuple[str, ...] = ("encoding", "mmseg", "timm")

STAGE_STRIDES_AND_RATES: dict[int, tuple[tuple[int, int], ...]] = {
    # output stride -> (stride, dilation rate) of the four stages
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The parameters of one bottleneck that depend on its position in the network.

    Attributes:
        stride: Spatial stride of the block.
        rate: Dilation of its 3x3 convolution.
        pool: Put a 3x3 average pool before or after split attention; it carries the stride.
        project: Put a 1x1 convolution and norm on the shortcut.
        mean_shortcut: Average 2x2 neighbours at stride 1 before that convolution (timm's dilated form).
        drop_block: Probability of DropBlock in this block.
        drop_path: Probability that an image skips this block (stochastic depth).
    """

    stride: int = 1
    rate: int = 1
    pool: bool = False
    project: bool = False
    mean_shortcut: bool = False
    drop_block: float = 0.0
    drop_path: float = 0.0


def stage_plans(spec: EncoderSpec, model: ModelConfig) -> Iterator[list[BlockPlan]]:
    """Plan the blocks of the four stages. The dilation variants differ here and nowhere else."""
    index, last = 0, max(sum(spec.depths) - 1, 1)
    for stage, (stride, rate) in enumerate(STAGE_STRIDES_AND_RATES[model.output_stride]):
        drop_block, dilated, plans = model.drop_block if stage >= 2 else 0.0, rate > 1, []
        for block in range(spec.depths[stage]):
            plan = BlockPlan(rate=rate, drop_block=drop_block, drop_path=model.drop_path * index / last)
            if block == 0:
                plan = dataclasses.replace(
                    plan,
                    stride=stride,
                    rate=max(rate // 2, 1),
                    pool=spec.radix > 0 and stage > 0 and (model.dilation == "encoding" or not dilated),
                    project=True,
                    mean_shortcut=model.dilation == "timm" and dilated,
                )
            plans.append(plan)
            index += 1
        yield plans


RECTIFICATIONS: tuple[str, ...] = ("none", "rectify", "rectify_avg")


class RectifiedConv2d(nn.Conv2d):
    """A convolution without bias whose output is rescaled for kernel taps in the zero padding.

    [N, C, H, W] -> [N, C', H', W']; same parameters as `nn.Conv2d`. Matches `RFConv2d` of PyTorch-Encoding.

    Args:
        average: Multiply by 1 / (taps inside the image) instead of (all taps) / (taps inside).
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
        """Count the taps of each output row (dim 0) or column (dim 1) that are inside the image."""
        assert isinstance(self.padding, tuple)
        size, kernel, stride = x.shape[2 + dim], self.kernel_size[dim], self.stride[dim]
        padding, dilation = self.padding[dim], self.dilation[dim]
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        first = torch.arange(outputs, device=x.device) * stride - padding
        positions = first[:, None] + torch.arange(kernel, device=x.device) * dilation
        return ((positions >= 0) & (positions < size)).sum(dim=1)


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
    """Build a convolution whose padding keeps the size at stride 1, optionally rectified."""
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


class DropBlock(nn.Module):
    """torchvision's DropBlock with 3x3 blocks, in float32: its pixel counts exceed the range of half precision."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.p = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        from torchvision.ops import drop_block2d  # imported here because it takes seconds and is rarely needed

        size = 1 if min(x.shape[2:]) == 2 else 3  # torchvision clips blocks to the features, which may give size 2
        kept: Tensor = drop_block2d(x.float(), self.p, size, training=True)
        return kept.to(x.dtype)


def _drop_block(probability: float) -> nn.Module:
    return DropBlock(probability) if probability else nn.Identity()


def _drop_path(probability: float) -> nn.Module:
    if not probability:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    path: nn.Module = StochasticDepth(probability, "row")
    return path


class SplitAttention(nn.Module):
    """3x3 convolution into R splits, and their sum weighted by attention over the splits (radix-major layout).

    [N, in_channels, H, W] -> [N, channels, H, W]. Matches `SplAtConv2d` of the authors' code.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        dilation: int,
        cardinality: int,
        radix: int,
        drop_block: float = 0.0,
        rectify: str = "none",
    ) -> None:
        super().__init__()
        attention_channels = max(in_channels * radix // 4, 32)
        self.radix, self.cardinality = radix, cardinality
        self.conv = padded_conv(
            in_channels, channels * radix, dilation=dilation, groups=cardinality * radix, rectify=rectify
        )
        self.bn0 = nn.BatchNorm2d(channels * radix)
        self.drop_block = _drop_block(drop_block)
        self.fc1 = nn.Conv2d(channels, attention_channels, kernel_size=1, groups=cardinality)
        self.bn1 = nn.BatchNorm2d(attention_channels)
        self.fc2 = nn.Conv2d(attention_channels, channels * radix, kernel_size=1, groups=cardinality)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.relu(self.drop_block(self.bn0(self.conv(x))))
        # The mean over pixels comes before the sum over splits: the result is equal, with one pass less over H x W.
        pooled = features.mean(dim=(2, 3)).unflatten(1, (self.radix, -1)).sum(dim=1)[..., None, None]  # [N, C, 1, 1]
        scores = self.fc2(self.relu(self.bn1(self.fc1(pooled))))  # [N, C * R, 1, 1], cardinality-major
        weights = self._over_splits(scores)  # [N, R * C, 1, 1]
        return self.weighted_sum(features, weights)

    def weighted_sum(self, features: Tensor, weights: Tensor) -> Tensor:
        """Multiply features [N, R * C, H, W] by weights [N, R * C, 1, 1] and sum over the splits: [N, C, H, W]."""
        weights = weights.to(features.dtype)  # on a GPU, autocast computes the softmax in float32, which would spread
        # Split by split: a sum over a dimension [N, R, C, H, W] costs twenty times as much in channels-last memory.
        first, *others = zip(features.chunk(self.radix, dim=1), weights.chunk(self.radix, dim=1), strict=True)
        out = first[0] * first[1]
        for split, weight in others:
            out = out.addcmul_(split, weight)
        return out

    def _over_splits(self, scores: Tensor) -> Tensor:
        by_group = scores.reshape(scores.shape[0], self.cardinality, self.radix, -1).transpose(1, 2)  # [N, R, K, C / K]
        weights = by_group.softmax(dim=1) if self.radix > 1 else by_group.sigmoid()
        return weights.flatten(1)[..., None, None]


class Bottleneck(nn.Module):
    """1x1 -> split attention or plain 3x3 convolution (and average pool) -> 1x1, plus the shortcut.

    [N, in_channels, H, W] -> [N, planes * EXPANSION, H / stride, W / stride], rounded up.
    """

    def __init__(self, in_channels: int, planes: int, *, spec: EncoderSpec, plan: BlockPlan, rectify: str) -> None:
        super().__init__()
        width, channels = planes * spec.bottleneck_width // 64 * spec.cardinality, planes * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.drop_block1 = _drop_block(plan.drop_block)
        pool = nn.AvgPool2d(3, plan.stride, padding=1) if plan.pool else nn.Identity()
        self.avd_first = pool if spec.pool_first else nn.Identity()
        if spec.radix:
            assert plan.pool or plan.stride == 1  # the pool carries the stride
            self.conv2: nn.Module = SplitAttention(
                width,
                width,
                dilation=plan.rate,
                cardinality=spec.cardinality,
                radix=spec.radix,
                drop_block=plan.drop_block,
                rectify=rectify,
            )
        else:
            self.conv2 = padded_conv(
                width, width, stride=plan.stride, dilation=plan.rate, groups=spec.cardinality, rectify=rectify
            )
        inside = spec.radix > 0  # split attention contains its norm and ReLU
        self.bn2 = nn.Identity() if inside else nn.BatchNorm2d(width)
        self.drop_block2 = nn.Identity() if inside else _drop_block(plan.drop_block)
        self.act2 = nn.Identity() if inside else nn.ReLU(inplace=True)
        self.avd_last = nn.Identity() if spec.pool_first else pool
        self.conv3 = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.drop_block3 = _drop_block(plan.drop_block)
        self.drop_path = _drop_path(plan.drop_path)
        self.downsample = _shortcut(in_channels, channels, spec=spec, plan=plan)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.avd_first(self.relu(self.drop_block1(self.bn1(self.conv1(x)))))
        out = self.avd_last(self.act2(self.drop_block2(self.bn2(self.conv2(out)))))
        out = self.drop_path(self.drop_block3(self.bn3(self.conv3(out))))
        out += self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class ResNeSt(nn.Module):
    """A ResNeSt or ResNet without its classifier: images -> the features of four stages.

    Normalised images [N, in_channels, H, W] -> (c1, c2, c3, c4) with `channels` channels at strides 4, 8 and, for c3
    and c4, min(16, output_stride) and output_stride. Any H, W >= 1; sizes round up at every stride.

    Args:
        model: The config; `encoder` names the architecture, `output_stride` is 8, 16 or 32 input pixels per pixel of
            c4, `dilation` names the dilated variant, see `resnest_seg.models.resnest`. Keys on heads and weights are
            not read.

    Attributes:
        channels: Channels of c1, c2, c3 and c4.
        config: `model`.

    Raises:
        ConfigError: Unknown encoder, dilation or rectification, or an output stride that does not exist.
    """

    size_divisor = 1

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        if model.encoder not in SPECS:
            raise unknown_name("encoder", model.encoder, SPECS)
        if model.output_stride not in STAGE_STRIDES_AND_RATES:
            strides = list(STAGE_STRIDES_AND_RATES)
            raise ConfigError(f"output_stride must be one of {strides}, not {model.output_stride}.")
        if model.dilation not in DILATIONS:
            raise unknown_name("dilation", model.dilation, DILATIONS)
        if model.rectify not in RECTIFICATIONS:
            raise unknown_name("rectify", model.rectify, RECTIFICATIONS)
        spec = SPECS[model.encoder]
        self.config = model
        self.output_stride, self.dilation, self.checkpointing = model.output_stride, model.dilation, model.checkpointing
        self.channels = tuple(spec.planes * 2**stage * EXPANSION for stage in range(4))
        width = 2 * spec.stem_width if spec.deep_stem else 64
        self.conv1 = _stem(model.in_channels, spec, rectify=model.rectify)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for stage, plans in enumerate(stage_plans(spec, model)):
            planes, blocks = spec.planes * 2**stage, []
            for plan in plans:
                blocks.append(Bottleneck(width, planes, spec=spec, plan=plan, rectify=model.rectify))
                width = planes * EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.apply(_init_weights)
        if model.zero_gamma:
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.stages(self.stem(images))

    def stem(self, images: Tensor) -> Tensor:
        """Features at stride 2, before the max pool: [N, in_channels, H, W] -> [N, C, H / 2, W / 2], rounded up."""
        features: Tensor = self.relu(self.bn1(self.conv1(images)))
        return features

    def stages(self, stem: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute (c1, c2, c3, c4) from the output of `stem`."""
        c1 = self._run(self.layer1, self.maxpool(stem))
        c2 = self._run(self.layer2, c1)
        c3 = self._run(self.layer3, c2)
        c4 = self._run(self.layer4, c3)
        return c1, c2, c3, c4

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        for block in stage:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                if torch.compiler.is_compiling():  # compiled graphs update the statistics once anyway
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    contexts = functools.partial(_forward_and_recompute, block)
                    x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x)
        return x


def adapt_first_convolution(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt the first convolution's RGB weight [C, 3, h, w] to other channels: [C, in_channels, h, w].

    A single channel gets the sum, so that a grey image gives the output of its RGB copy; otherwise R, G, B repeat,
    scaled to the same total, as in timm and segmentation-models-pytorch.
    """
    if in_channels == weight.shape[1]:
        return weight
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight[:, torch.arange(in_channels) % weight.shape[1]]
    return repeated * (weight.shape[1] / in_channels)


def _stem(in_channels: int, spec: EncoderSpec, *, rectify: str) -> nn.Module:
    """Build the stem without its last norm, 7x7 or three 3x3: [N, in_channels, H, W] -> [N, C, H / 2, W / 2]."""
    if not spec.deep_stem:
        return padded_conv(in_channels, 64, kernel_size=7, stride=2, rectify=rectify)
    width = spec.stem_width
    return nn.Sequential(
        padded_conv(in_channels, width, stride=2, rectify=rectify),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        padded_conv(width, width, rectify=rectify),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        padded_conv(width, 2 * width, rectify=rectify),
    )


def _shortcut(in_channels: int, channels: int, *, spec: EncoderSpec, plan: BlockPlan) -> nn.Module:
    """Build a shortcut: [N, in_channels, H, W] -> [N, channels, H / stride, W / stride], or the identity."""
    if not plan.project:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, channels, 1, stride=1 if spec.avg_down else plan.stride, bias=False)
    if not spec.avg_down:
        return nn.Sequential(conv, nn.BatchNorm2d(channels))
    pool: nn.Module = nn.Identity()  # occupies index 0 of the state dict's keys
    if plan.stride > 1:
        pool = nn.AvgPool2d(plan.stride, plan.stride, ceil_mode=True, count_include_pad=False)
    elif plan.mean_shortcut:
        # The pixel, its right, lower and lower right neighbour; zeros outside, as timm's "same" padding.
        pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, stride=1))
    return nn.Sequential(pool, conv, nn.BatchNorm2d(channels))


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Context in which norms in training mode do not update their running statistics."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, counter in before:
        norm.momentum = 0.0  # not disabled: the norm would save fewer tensors than in the first pass
        norm.num_batches_tracked = None if counter is None else counter.clone()
    try:
        yield
    finally:
        for norm, momentum, counter in before:
            norm.momentum, norm.num_batches_tracked = momentum, counter


def _forward_and_recompute(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return contexts for activation checkpointing: the recomputation must not update running statistics again."""
    return contextlib.nullcontext(), _statistics_kept(block)


@torch.no_grad()
def _init_weights(module: nn.Module) -> None:
    """Initialise with normal weights of variance 2 / (kernel area * output channels), as in the authors' code."""
    if isinstance(module, nn.Conv2d):
        area = math.prod(module.kernel_size)
        module.weight.normal_(0, math.sqrt(2.0 / (area * module.out_channels)))
