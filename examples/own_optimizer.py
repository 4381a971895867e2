"""An optimiser of your own: a function from parameter groups, or an optimiser that exists already.

python examples/own_optimizer.py runs/own_optimizer
"""

import sys
from typing import Any

import torch

import resnest_seg


def rmsprop(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Groups of equal rate and decay; the config's schedule sets `optim.lr` times each group's `lr_factor`."""
    return torch.optim.RMSprop(groups, momentum=0.9)


def main(output: str) -> None:
    """Train, stop in the midst, and go on: the optimiser's state is saved with the run."""
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn"},
        "data": {"dataset": "synthetic", "crop_size": 96, "check": 0},
        "optim": {"lr": 0.001, "schedule": "cosine", "warmup": 3},
        "train": {"epochs": None, "iterations": 12, "batch_size": 4},
        "eval": {"limit": 4},
    }
    resnest_seg.fit(config, optimizer=rmsprop, output=output, until=4)
    result = resnest_seg.fit(config, optimizer=rmsprop, output=output, resume="yes")
    print(f"mIoU {100 * result.best_score:.1f} after {result.step} steps")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own_optimizer")
