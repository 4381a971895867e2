"""Small segmenters, for tests of what is done with a segmenter."""

import functools

import numpy as np
import torch
from torch import nn

from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.models import heads
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.heads import FCNHead
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.mask2former import LEVELS, Mask2FormerHead
from resnest_seg.models.segmenter import Segmenter
from support.reference import fill


class OneConvolution(nn.Module):
    """Features at stride 4, four times the same."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x):
        return (self.pool(self.norm(self.conv(x)).relu()),) * 4


SMALL_MASK2FORMER = functools.partial(Mask2FormerHead, queries=20, layers=LEVELS)
"""The head with a third of its like layers, one for each level, and a fifth of its queries."""


def shrink_mask2former(patch):
    """Build all heads that predict masks as the small one."""
    patch.setattr(heads, "Mask2FormerHead", SMALL_MASK2FORMER)


def small_segmenter(space=None, *, classes=3, channels=3, data="camvid", task="multiclass"):
    """In eval mode, with norms and weights that matter."""
    config = RunConfig(
        model=ModelConfig(encoder="resnest14_tiny", head="fcn", in_channels=channels, task=task),
        data=DataConfig(dataset=data, crop_size=48, base_size=64),
    )
    heads = FCNHead(16, classes), FCNHead(16, classes, stage=-2)
    return used(Segmenter(OneConvolution(channels), *heads, config=config, num_classes=classes, label_space=space))


def used(segmenter):
    """With weights and statistics as a trained model may have them, in eval mode."""
    pixels = segmenter.pixel_mean.clone(), segmenter.pixel_std.clone()
    fill(segmenter)
    segmenter.pixel_mean.copy_(pixels[0])
    segmenter.pixel_std.copy_(pixels[1])
    return segmenter


def noise(*shape, seed=0):
    """Pixels, uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def logits_of(segmenter, images):
    """Of pixels uint8 [N, C, H, W], as NumPy."""
    with torch.inference_mode():
        return segmenter(torch.from_numpy(images)).logits.numpy()


def save_scenes_model(folder):
    """Save a fresh model of the synthetic scenes in a folder, as best.safetensors; returns the file."""
    torch.manual_seed(0)
    data = DataConfig(dataset="synthetic", base_size=96, crop_size=64)
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn"), data=data)
    weights = build_segmenter("resnest14_tiny", head="fcn", num_classes=10).state_dict()
    Checkpoint(config, Synthetic("test").label_space, weights).save(folder / "best.safetensors")
    return folder / "best.safetensors"
