"""The average of the weights against the formula written out."""

import pytest
import torch
from torch import nn

from resnest_seg.ema import WeightAverage


def test_it_is_the_formula_and_survives_a_save():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, decay=0.75)
    expected = {key: value.double().clone() for key, value in model.state_dict().items()}
    for _ in range(3):
        model(torch.randn(5, 3))
        with torch.no_grad():
            model[0].weight += torch.randn(4, 3)
        average.update()
        for key, value in model.state_dict().items():
            expected[key] = 0.75 * expected[key] + 0.25 * value.double()
    expected["1.num_batches_tracked"] = torch.tensor(3)  # a count is no average
    for key, value in average.values.items():
        assert value.double().numpy() == pytest.approx(expected[key].numpy(), abs=1e-6), key
    again = WeightAverage(model, decay=0.75)
    again.load(average.values)
    assert all(torch.equal(value, average.values[key]) for key, value in again.values.items())
    assert not torch.equal(again.values["0.weight"], model[0].weight)
    with pytest.raises(KeyError):
        again.load({})
