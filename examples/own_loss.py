"""A loss of your own: full-size logits [N, K, H, W] and labels [N, H, W] -> the mean over the labelled pixels.

python examples/own_loss.py runs/own_loss
"""

import sys

import torch
from torch import Tensor, nn

import resnest_seg


class PolyLoss(nn.Module):
    """Cross-entropy plus epsilon times (1 - probability of the true class). Leng et al., arxiv.org/abs/2204.12511."""

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=resnest_seg.IGNORE_LABEL, reduction="none")
        labelled = labels != resnest_seg.IGNORE_LABEL
        return (losses + self.epsilon * (1 - torch.exp(-losses)))[labelled].mean()


def main(output: str) -> None:
    """Train on drawn street scenes with it; auxiliary logits, accumulation and several processes are handled."""
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn"},
        "data": {"dataset": "synthetic", "crop_size": 96, "check": 0},
        "train": {"epochs": None, "iterations": 10, "batch_size": 4, "accumulation": 2},
        "eval": {"limit": 4},
    }
    result = resnest_seg.fit(config, loss=PolyLoss(), output=output)
    print(f"mIoU {100 * result.best_score:.1f} after {result.step} steps")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own_loss")
