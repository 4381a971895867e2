"""The learning rate as a pure function of the step, and the length of a run.

A resumed run needs no state of a scheduler, and a step's rate can be computed before the run begins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from resnest_seg.config import RunConfig, TrainConfig
from resnest_seg.errors import ConfigError, unknown_name

WARMUP_START = 1e-3
"""Share of the full rate that a warm-up begins with."""


def poly(progress: float, *, power: float) -> float:
    """(1 - progress) ** power: 1 at the start, 0 at the end. Liu et al., https://arxiv.org/abs/1506.04579."""
    return math.pow(1 - progress, power)


def cosine(progress: float) -> float:
    """Half a cosine wave from 1 to 0. Loshchilov and Hutter, https://arxiv.org/abs/1608.03983, without restarts."""
    return (1 + math.cos(math.pi * progress)) / 2


CURVES: dict[str, Callable[[float, float], float]] = {
    # name -> (progress 0..1, power) -> share of the way from the floor to the full rate
    "poly": lambda progress, power: poly(progress, power=power),
    "cosine": lambda progress, power: cosine(progress),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a curve from `lr` down to `min_lr`: torch's SequentialLR of LinearLR and the curve's own.

    Attributes:
        steps: Optimiser steps of the run; from there on the rate is `min_lr`.
        lr: Full rate, reached at the end of the warm-up.
        curve: A key of `CURVES`.
        power: Exponent of poly.
        min_lr: Rate at the end. With it, poly is mmsegmentation's: (lr - min_lr) * (1 - t) ** power + min_lr.
        warmup_steps: Steps of the warm-up, of which the first has `lr * WARMUP_START`; the curve has the rest.
    """

    steps: int
    lr: float
    curve: str = "poly"
    power: float = 0.9
    min_lr: float = 0.0
    warmup_steps: int = 0

    @classmethod
    def from_config(cls, config: RunConfig, *, steps_per_epoch: int) -> Schedule:
        """The schedule of a run, with rates for the batch that it has.

        Raises:
            ConfigError: Unknown schedule, or a warm-up as long as the run.
        """
        optim, factor = config.optim, batch_factor(config)
        if optim.schedule not in CURVES:
            raise unknown_name("optim.schedule", optim.schedule, CURVES)
        steps = run_steps(config.train, steps_per_epoch=steps_per_epoch)
        unit = 1 if config.train.epochs is None else steps_per_epoch
        warmup_steps = round(optim.warmup * unit)
        if warmup_steps >= steps:
            raise ConfigError(
                f"optim.warmup ({optim.warmup}) takes {warmup_steps} of the run's {steps} steps: lower it."
            )
        return cls(
            steps,
            optim.lr * factor,
            optim.schedule,
            optim.power,
            min_lr=optim.min_lr * factor,
            warmup_steps=warmup_steps,
        )

    def __call__(self, step: int) -> float:
        """The rate of step 0, 1, 2, ..."""
        if step < self.warmup_steps:
            return self.lr * (WARMUP_START + (1 - WARMUP_START) * step / self.warmup_steps)
        progress = min((step - self.warmup_steps) / (self.steps - self.warmup_steps), 1.0)
        return self.min_lr + (self.lr - self.min_lr) * CURVES[self.curve](progress, self.power)


def run_steps(train: TrainConfig, *, steps_per_epoch: int) -> int:
    """Optimiser steps of a run: its iterations, or its epochs' steps."""
    if train.iterations is not None:
        return train.iterations
    assert train.epochs is not None  # the config holds one of the two
    return train.epochs * steps_per_epoch


def batch_factor(config: RunConfig) -> float:
    """What rates are multiplied by, because the batch is another than the one they are meant for.

    The linear scaling rule: Goyal et al., https://arxiv.org/abs/1706.02677.
    """
    reference = config.optim.reference_batch
    return 1.0 if reference is None else config.train.batch_size / reference


def describe_lr(config: RunConfig) -> str:
    """The full rate for people, and where it comes from when the batch is not the one of the recipe."""
    optim, batch = config.optim, config.train.batch_size
    lr = f"{optim.lr * batch_factor(config):.4g}"
    if batch_factor(config) == 1:
        return f"lr {lr}"
    return (
        f"lr {lr} ({optim.lr:g} is for {optim.reference_batch} images a step, and this run has {batch}; "
        "optim.reference_batch null would keep it)"
    )
