"""Parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from resnest_seg.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD with two parameter groups, what is named encoder.* and the rest, as the authors train.

    Each group carries `lr_factor`; `set_lr` multiplies it with the schedule.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    encoder = [parameter for name, parameter in named if name.startswith("encoder.")]
    heads = [parameter for name, parameter in named if not name.startswith("encoder.")]
    return torch.optim.SGD(
        [{"params": encoder, "lr_factor": 1.0}, {"params": heads, "lr_factor": config.head_lr_factor}],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def poly_lr(step: int, *, steps: int, lr: float, power: float) -> float:
    """The poly schedule of PyTorch-Encoding: lr * (1 - step / steps) ** power, from step 0 on, 0 at the end."""
    return lr * math.pow(1 - min(step / steps, 1.0), power)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
