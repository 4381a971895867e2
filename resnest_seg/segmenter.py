"""The whole model: pixel statistics, encoder, head and auxiliary head. Pixels in, logits out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from resnest_seg.config import RunConfig
from resnest_seg.errors import ConfigError
from resnest_seg.heads import FCNHead, build_head, resize_logits
from resnest_seg.labels import LabelSpace
from resnest_seg.resnest import ResNeSt, build_encoder

PIXEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
"""Mean of ImageNet's pixels, RGB, 0..255."""

PIXEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Standard deviation of ImageNet's pixels, RGB, 0..255."""


class SegmenterOutput(NamedTuple):
    """What a `Segmenter` returns.

    Attributes:
        logits: Class scores before softmax at the input's size, [N, K, H, W].
        aux_logits: The auxiliary head's, likewise; None in eval mode or without an auxiliary head.
    """

    logits: Tensor
    aux_logits: Tensor | None


class Segmenter(nn.Module):
    """Images [N, 3, H, W], RGB 0..255 (uint8 or float) -> `SegmenterOutput`.

    The model normalises by itself, with its own buffers, so that loaders, predictors and exports cannot disagree.
    Any H, W >= 1; runs in channels-last memory, which the layers of this network prefer on CPU and GPU.

    Args:
        encoder: Normalised images -> features (c1, c2, c3, c4).
        head: c4 -> logits at feature stride.
        aux_head: c3 -> logits at feature stride, used in training only.

    Attributes:
        config: The run that the model was trained by, where it is known.
        label_space: The classes, in the order of the logits, where they are known.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    config: RunConfig | None = None
    label_space: LabelSpace | None = None

    def __init__(self, encoder: ResNeSt, head: nn.Module, aux_head: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))
        self.encoder = encoder
        self.head = head
        self.aux_head = aux_head

    @property
    def description(self) -> str:
        """Encoder, head, output stride and dilation variant in one line."""
        model = None if self.config is None else self.config.model
        names = (
            f"{model.encoder} {model.head}" if model else f"{type(self.encoder).__name__} {type(self.head).__name__}"
        )
        return f"{names}, output stride {self.encoder.output_stride}, dilation {self.encoder.dilation}"

    def forward(self, images: Tensor) -> SegmenterOutput:
        size = (images.shape[2], images.shape[3])
        _, _, c3, c4 = self.encoder(self.normalise(images))
        logits = resize_logits(self.head(c4), size)
        if self.training and self.aux_head is not None:
            return SegmenterOutput(logits, resize_logits(self.aux_head(c3), size))
        return SegmenterOutput(logits, None)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels 0..255 to zero mean and unit variance over ImageNet, in channels-last memory."""
        images = images.to(dtype=self.pixel_mean.dtype, memory_format=torch.channels_last)
        return (images - self.pixel_mean) / self.pixel_std


def build_segmenter(
    encoder: str = "resnest50",
    *,
    head: str = "deeplabv3",
    num_classes: int = 150,
    output_stride: int = 8,
    dilation: str = "encoding",
    aux_head: bool = True,
) -> Segmenter:
    """Build a model with fresh weights, in training mode and channels-last memory.

    Args:
        encoder: A name of `resnest_seg.resnest.SPECS`.
        head: "fcn" or "deeplabv3".
        num_classes: K, at least 1.
        output_stride: 8, 16 or 32 input pixels per step of the last features.
        dilation: The dilated network that is meant, see `resnest_seg.resnest`.
        aux_head: Add an FCN head on the third stage for training.

    Raises:
        ConfigError: Unknown encoder, head or dilation (the nearest is named), or a value out of range.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes must be at least 1, not {num_classes}.")
    features = build_encoder(encoder, output_stride=output_stride, dilation=dilation)
    segmenter = Segmenter(
        encoder=features,
        head=build_head(head, features.channels[3], num_classes, output_stride=output_stride),
        aux_head=FCNHead(features.channels[2], num_classes) if aux_head else None,
    )
    convert_conv2d_weight_memory_format(segmenter, torch.channels_last)
    return segmenter
