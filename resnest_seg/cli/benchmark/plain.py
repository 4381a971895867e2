"""The networks written as their authors wrote them, on the weights of ours: what the benchmarks call the plain form.

NCHW memory, float32, batch norms of their own, split attention as split, Python's sum and two passes (`SplAtConv2d` of
https://github.com/zhanghang1989/ResNeSt), the pooled branch of ASPP resized and concatenated, the auxiliary head
computed, and both logits resized to the image's size (https://github.com/zhanghang1989/PyTorch-Encoding).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from resnest_seg.models.heads import ASPP
from resnest_seg.models.resnest import SplitAttention

if TYPE_CHECKING:
    from torch import Tensor

    from resnest_seg.models.segmenter import Segmenter


class PlainSplitAttention(nn.Module):
    """`SplitAttention` step by step."""

    def __init__(self, module: SplitAttention) -> None:
        super().__init__()
        self.parts = module

    def forward(self, x: Tensor) -> Tensor:
        parts, radix = self.parts, self.parts.radix
        x = parts.relu(parts.drop_block(parts.bn0(parts.conv(x))))
        batch, channels = x.shape[:2]
        splits = torch.split(x, channels // radix, dim=1) if radix > 1 else (x,)
        gap = F.adaptive_avg_pool2d(_added(splits), 1)
        attention = parts.fc2(parts.relu(parts.bn1(parts.fc1(gap))))
        if radix > 1:
            attention = attention.view(batch, parts.cardinality, radix, -1).transpose(1, 2)
            attention = F.softmax(attention, dim=1).reshape(batch, -1)
        else:
            attention = torch.sigmoid(attention)
        attention = attention.view(batch, -1, 1, 1)
        weights = torch.split(attention, channels // radix, dim=1)
        return _added([weight * part for weight, part in zip(weights, splits, strict=True)]).contiguous()


class PlainASPP(nn.Module):
    """`ASPP` with a pooled branch of full size."""

    def __init__(self, module: ASPP) -> None:
        super().__init__()
        self.parts = module

    def forward(self, features: Tensor) -> Tensor:
        parts = self.parts
        pooled = F.interpolate(parts.b4.gap(features), features.shape[2:], mode="bilinear", align_corners=True)
        views = [branch(features) for branch in (parts.b0, parts.b1, parts.b2, parts.b3)]
        projected: Tensor = parts.project(torch.cat([*views, pooled], dim=1))
        return projected


class PlainSegmenter(nn.Module):
    """Images [N, 3, H, W] 0..255 -> logits and auxiliary logits, both of full size.

    Args:
        segmenter: Copied; its sides must need no padding. In family "encoding".
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = copy.deepcopy(segmenter)
        for name, module in list(self.segmenter.named_modules()):
            if isinstance(module, SplitAttention):
                self.segmenter.set_submodule(name, PlainSplitAttention(module))
            elif isinstance(module, ASPP):
                self.segmenter.set_submodule(name, PlainASPP(module))
        for parameter in self.parameters():  # the strides of a 1x1 kernel, too: torch reads the memory format from them
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.segmenter
        return self.logits((images.contiguous() - model.pixel_mean) / model.pixel_std)

    def logits(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of images that are normalised already."""
        model: Any = self.segmenter
        features = model.encoder(normalised)
        main, aux = (
            F.interpolate(head(features), normalised.shape[2:], mode="bilinear", align_corners=True)
            for head in (model.head, model.aux_head)
        )
        return main, aux


def _added(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Python's sum, which begins with 0."""
    total: Tensor | int = sum(parts)
    assert not isinstance(total, int)
    return total
