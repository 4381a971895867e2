"""The average of the weights against the formula written out, and against the closed form of its warm-up."""

import math

import pytest
import torch
from torch import nn

from resnest_seg.training.optim import WeightAverage, decay_of, too_short


def test_it_is_the_formula_and_survives_a_save():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, decay=0.15)
    expected = {key: value.double().clone() for key, value in model.state_dict().items()}
    for decay in (1 / 10, 0.15, 0.15):  # 2 / 11 and 3 / 12 are above
        model(torch.randn(5, 3))
        with torch.no_grad():
            model[0].weight += torch.randn(4, 3)
        average.update()
        for key, value in model.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    expected["1.num_batches_tracked"] = torch.tensor(3)  # a count is no average
    for key, value in average.values.items():
        assert value.double().numpy() == pytest.approx(expected[key].numpy(), abs=1e-6), key
    again = WeightAverage(model, decay=0.15)
    again.load(average.values, updates=average.updates)
    assert again.updates == 3
    assert all(torch.equal(value, average.values[key]) for key, value in again.values.items())
    assert not torch.equal(again.values["0.weight"], model[0].weight)
    with pytest.raises(KeyError):
        again.load({}, updates=0)


def test_the_first_weights_are_forgotten_by_the_closed_form():
    """The product of (1 + t) / (10 + t) over T updates is T! 9! / (T + 9)!; from the given decay on, a power of it."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    averages = {decay: WeightAverage(model, decay=decay) for decay in (0.9999, 0.5)}
    nn.init.zeros_(model.weight)
    for update in range(1, 31):
        for decay, average in averages.items():
            average.update()
            warm = update if decay == 0.9999 else min(update, 8)  # 9 / 18 is the half
            left = float(average.values["weight"])
            assert left == pytest.approx(decay ** (update - warm) / math.comb(warm + 9, 9), rel=1e-9)
    assert decay_of(10**9, 0.9999) == 0.9999


def test_a_decay_that_is_too_long_for_the_run_is_told():
    assert too_short(0.0, 1) is None
    assert too_short(0.9, 50) is None
    assert too_short(0.998, 2500) is None
    says = too_short(0.998, 1267)
    assert says.startswith("train.ema 0.998 averages over about 500 steps, and the run has 1267, fewer than 5 times")
    fitting = float(says.partition("train.ema ")[2].partition("train.ema ")[2].split()[0])
    assert too_short(fitting, 1267) is None
    assert "train.ema 0 keeps none" in too_short(0.9, 4)
