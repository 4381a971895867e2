"""A head of your own: any module from four features to logits. Train it, and every tool loads it again.

python examples/own_head.py runs/own_head
resnest-seg predict --checkpoint runs/own_head --model examples/own_head.py:build photo.jpg
resnest-seg train --dataset camvid --model examples/own_head.py:build
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import resnest_seg


class SumHead(nn.Module):
    """Features c1..c4 -> logits [N, K, h, w] at c1's size: one convolution each, resized and added."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, num_classes, kernel_size=1) for width in channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        parts = [layer(feature) for layer, feature in zip(self.layers, features[-4:], strict=True)]
        size = parts[0].shape[2:]
        resized = [nn.functional.interpolate(part, size, mode="bilinear") for part in parts]
        return torch.stack(resized).sum(dim=0)


def build(num_classes: int) -> resnest_seg.Segmenter:
    """The network, with fresh weights: what `--model examples/own_head.py:build` calls."""
    encoder = resnest_seg.build_encoder("resnest14_tiny", output_stride=16)
    return resnest_seg.Segmenter(encoder, SumHead(encoder.channels, num_classes), num_classes=num_classes)


def main(output: str) -> None:
    """Train on drawn street scenes, load the best weights again, and label a scene."""
    config = {
        "data": {"dataset": "synthetic", "crop_size": 96, "check": 0},
        "train": {"epochs": None, "iterations": 10, "batch_size": 4},
        "eval": {"limit": 4},
    }
    result = resnest_seg.fit(config, segmenter=build, output=output)
    print(f"mIoU {100 * result.best_score:.1f} after {result.step} steps")

    segmenter = resnest_seg.load_checkpoint(output, into=build)
    scene = resnest_seg.Synthetic("val")[0].image
    resnest_seg.Predictor(segmenter)(scene).save(f"{output}/scene.png")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own_head")
