"""A moving average of the weights, which often scores better than the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, from the given weights on; batch norm's statistics too.

    Numbers that are no floats (batch counters) are copied. Works on weights that are split over processes: each
    averages its part.

    Args:
        model: The model whose weights are followed.
        decay: 0..1.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values: dict[str, Tensor] = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self._mix = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the model's weights."""
        now = {key: _local(value) for key, value in self.model.state_dict().items()}
        floats = [key for key, value in now.items() if value.is_floating_point()]
        self._mix([_local(self.values[key]) for key in floats], [now[key] for key in floats], 0)
        for key in now.keys() - set(floats):
            _local(self.values[key]).copy_(now[key])

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Put saved values back.

        Raises:
            KeyError: One is missing.
        """
        for key, own in self.values.items():
            own.copy_(values[key])


def _local(value: Tensor) -> Tensor:
    """This process's part of a tensor that is split over processes (a DTensor), sharing its memory."""
    return value.to_local() if hasattr(value, "to_local") else value
