"""A moving average of the weights, which often scores better than the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

LENGTHS = 5
"""A run should be so many times as long as the average, which is over about 1 / (1 - decay) steps."""


def decay_of(update: int, decay: float) -> float:
    """The decay of update 0, 1, 2, ...: min(decay, (1 + t) / (10 + t)), so that the fresh weights are soon forgotten.

    After T updates of the warm-up they weigh 1 / C(T + 9, 9): a tenth after the first, a ten-millionth after 20. The
    form is that of TensorFlow's ExponentialMovingAverage with `num_updates`, as EfficientNet and its followers use it.
    """
    return min(decay, (1 + update) / (10 + update))


def too_short(decay: float, steps: int) -> str | None:
    """What is wrong with a decay for a run of so many steps, in words; None if nothing is."""
    if decay == 0 or decay <= round(fitting := 1 - LENGTHS / steps, 9):
        return None
    down = math.floor(10_000 * fitting) / 10_000
    advice = f"train.ema {down:g} or less would fit" if fitting > 0.1 else "train.ema 0 keeps none"
    return (
        f"train.ema {decay:g} averages over about {1 / (1 - decay):.0f} steps, and the run has {steps}, fewer than "
        f"{LENGTHS} times as many: its decay still warms up at the end ({decay_of(steps, decay):.3g}). {advice}."
    )


class WeightAverage:
    """average <- d * average + (1 - d) * weights, from the given weights on; batch norm's statistics too.

    d is `decay_of` the update. Numbers that are no floats (batch counters) are copied. Works on weights that are split
    over processes: each averages its part.

    Args:
        model: The model whose weights are followed.
        decay: 0..1, reached after about 9 / (1 - decay) updates.

    Attributes:
        updates: How many there were.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.values: dict[str, Tensor] = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the model's weights."""
        now = {key: _local(value) for key, value in self.model.state_dict().items()}
        floats = [key for key, value in now.items() if value.is_floating_point()]
        mix = get_ema_multi_avg_fn(decay_of(self.updates, self.decay))
        mix([_local(self.values[key]) for key in floats], [now[key] for key in floats], 0)
        for key in now.keys() - set(floats):
            _local(self.values[key]).copy_(now[key])
        self.updates += 1

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], *, updates: int) -> None:
        """Put saved values back, and how many updates had made them.

        Raises:
            KeyError: One is missing.
        """
        for key, own in self.values.items():
            own.copy_(values[key])
        self.updates = updates


def _local(value: Tensor) -> Tensor:
    """This process's part of a tensor that is split over processes (a DTensor), sharing its memory."""
    return value.to_local() if hasattr(value, "to_local") else value
