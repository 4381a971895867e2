"""Which encoders there are and what each is built of, as plain values: no torch in here.

A dilated ResNeSt is several different networks in the wild that all load the same weights silently. They differ in the
first block of a stage whose stride became a dilation; `dilation` names the one that is meant:

    variant      3x3 pool after split attention   shortcut before its 1x1 convolution   code of
    "encoding"   stays, with stride 1             the pixel itself                      PyTorch-Encoding (the authors)
    "mmseg"      dropped                          the pixel itself                      mmsegmentation, detectron2 ports
    "timm"       dropped                          2x2 mean with stride 1                timm, and so SMP's tu-resnest*

In all of them that block has half of the stage's rate, and at output stride 32 all of them are the ImageNet network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from resnest_seg.config import ModelConfig

SMP = "smp:"
"""Encoders and heads whose names begin so are those of segmentation-models-pytorch."""

EXPANSION = 4
"""Output channels of a bottleneck, per plane."""


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """What tells one encoder of the family from another.

    Attributes:
        depths: Bottlenecks in the four stages.
        deep_stem: Three 3x3 convolutions instead of one 7x7.
        stem_width: Channels of the first two convolutions of a deep stem; the third has twice as many.
        radix: Splits R that attention weighs; 0 is a plain 3x3 convolution, the ResNet family.
        cardinality: Groups K within each split.
        bottleneck_width: Channels of a group in the first stage, per 64 planes.
        planes: Planes of the first stage; every later stage doubles them. 64 in all published networks.
        avg_down: A strided shortcut averages pixels before its 1x1 convolution, instead of dropping them.
        pool_first: The 3x3 average pool that carries a block's stride stands before split attention ("fast").
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
    "resnest14_tiny": EncoderSpec((1, 1, 1, 1), stem_width=8, planes=8),  # ours, an eighth as wide: demos and tests
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
    """How one bottleneck stands in its network.

    Attributes:
        stride: Spatial stride of the block.
        rate: Dilation of its 3x3 convolution.
        pool: Put the 3x3 average pool beside split attention; where there is one, it carries the stride.
        project: Put a 1x1 convolution and norm on the shortcut.
        mean_shortcut: Average 2x2 neighbours at stride 1 before that convolution (timm's dilated form).
        drop_block: Probability of DropBlock in this block.
        drop_path: Probability that an image skips this block.
    """

    stride: int = 1
    rate: int = 1
    pool: bool = False
    project: bool = False
    mean_shortcut: bool = False
    drop_block: float = 0.0
    drop_path: float = 0.0


def stage_plans(spec: EncoderSpec, model: ModelConfig) -> Iterator[list[BlockPlan]]:
    """The blocks of each of the four stages. What tells the dilation variants apart is decided here only."""
    place, last = 0, max(sum(spec.depths) - 1, 1)
    for stage, (stride, rate) in enumerate(STAGE_STRIDES_AND_RATES[model.output_stride]):
        drop_block, dilated, plans = model.drop_block if stage >= 2 else 0.0, rate > 1, []
        for block in range(spec.depths[stage]):
            plan = BlockPlan(rate=rate, drop_block=drop_block, drop_path=model.drop_path * place / last)
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
            place += 1
        yield plans
